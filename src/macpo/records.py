"""What passes between stages: small frozen records, each with a readable JSON form.

A worked example, one line of a `pairs.jsonl`:

    {"prompt": [{"role": "user", "content": "Name a prime."}],
     "chosen": [{"role": "assistant", "content": "7"}],
     "rejected": [{"role": "assistant", "content": "8 is prime."}],
     "prompt_id": "6f0c…",
     "chosen_response": {"finished": true, "token_ids": "[39, 2]", "tokenizer": "b81d…",
                         "origin": {"policy": "student/positive", …}},
     "rejected_response": {…}}

The first three columns are a preference data set as TRL knows it; the others are ours.

Text is the interface between agents, whose tokenizers may differ. Token ids are kept beside the
text together with the fingerprint of the tokenizer that they belong to, so that whoever shares the
tokenizer scores exactly what was sampled and nobody re-encodes it (re-encoded text can give other
ids).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from macpo.errors import DataError
from macpo.seeds import digest, joined

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

Split = Literal["teacher", "student", "test", "validation"]
SPLITS: tuple[Split, ...] = ("teacher", "student", "test", "validation")

Record = TypeVar("Record")

PROMPTS_FILE = "prompts.jsonl"
RESPONSES_FILE = "responses.jsonl"
PAIRS_FILE = "pairs.jsonl"
SCORES_FILE = "scores.jsonl"
JUDGEMENTS_FILE = "judgements.jsonl"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        """Hold the text as it comes back from a file."""
        object.__setattr__(self, "content", joined(self.content))

    def to_json(self) -> dict[str, str]:
        """Return the message as chat templates and TRL data sets write it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for the assistant's next turn; the last message is the user's."""

    messages: tuple[Message, ...]

    @property
    def id(self) -> str:
        """Content hash of the messages, 16 hexadecimal characters: equal prompts, equal ids."""
        return digest([[m.role, m.content] for m in self.messages])[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; `id` is written for readers and recomputed when read back."""
        return {"id": self.id, "messages": [m.to_json() for m in self.messages]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Prompt:
        """Read what `to_json` wrote."""
        return cls(tuple(Message(m["role"], m["content"]) for m in value["messages"]))


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """One row of a preference data set: a prompt, a better answer and a worse one, as text."""

    prompt: Prompt
    chosen: str
    rejected: str

    def to_json(self) -> dict[str, Any]:
        """Return the row as TRL's conversational preference format writes it."""
        return {
            "prompt": [m.to_json() for m in self.prompt.messages],
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PreferenceExample:
        """Read what `to_json` wrote."""
        messages = tuple(Message(m["role"], m["content"]) for m in value["prompt"])
        return cls(
            Prompt(messages), value["chosen"][-1]["content"], value["rejected"][-1]["content"]
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a response came from: whose weights, drawn how.

    What else the stage did that asked (a system prompt, contrast with another policy) is in that
    stage's key. `policy` is `agent/positive`, `agent/negative` or `dataset`; `weights` the store
    key of the weights that sampled it (empty for the bare base model and for data sets).
    """

    policy: str
    weights: str = ""
    backend: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict, hash=False)
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "policy": self.policy,
            "weights": self.weights,
            "backend": self.backend,
            "sampling": dict(self.sampling),
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True)
class Response:
    """One answer to one prompt.

    `finished` says that the answer ended by itself. `token_ids` are the ids as sampled, with the
    end-of-turn token last when `finished`; they belong to the tokenizer with the fingerprint
    `tokenizer`. Both are empty for text that no model sampled.
    """

    prompt_id: str
    text: str
    origin: Origin
    finished: bool = True
    token_ids: tuple[int, ...] = ()
    tokenizer: str = ""

    def __post_init__(self) -> None:
        """See `Message`."""
        object.__setattr__(self, "text", joined(self.text))

    @property
    def is_empty(self) -> bool:
        """Whether the answer says nothing: nobody can score it or learn from it."""
        return not self.text.strip()

    @property
    def id(self) -> str:
        """Content hash of prompt, text and ids: scores of a response are joined by it."""
        return digest(
            [self.prompt_id, self.text, self.finished, list(self.token_ids), self.tokenizer]
        )[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "prompt_id": self.prompt_id,
            "text": self.text,
            "finished": self.finished,
            "token_ids": list(self.token_ids),
            "tokenizer": self.tokenizer,
            "origin": self.origin.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Response:
        """Read what `to_json` wrote."""
        return cls(
            prompt_id=value["prompt_id"],
            text=value["text"],
            origin=Origin(**value["origin"]),
            finished=value["finished"],
            token_ids=tuple(value["token_ids"]),
            tokenizer=value["tokenizer"],
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with a chosen and a rejected response: one contrastive training example."""

    prompt: Prompt
    chosen: Response
    rejected: Response

    def to_json(self) -> dict[str, Any]:
        """Return the row of a TRL preference data set, with what else is known beside it.

        Every column has one type in all rows, as `datasets` wants it: lists that may be empty and
        objects whose keys vary (`token_ids`, `sampling`) are JSON inside of text.

        Raises:
            ValueError: a response answers another prompt.
        """
        prompt_id = self.prompt.id
        if {self.chosen.prompt_id, self.rejected.prompt_id} != {prompt_id}:
            raise ValueError(f"a pair on prompt {prompt_id} holds an answer to another prompt")
        return {
            **PreferenceExample(self.prompt, self.chosen.text, self.rejected.text).to_json(),
            "prompt_id": prompt_id,
            "chosen_response": _beside_text(self.chosen),
            "rejected_response": _beside_text(self.rejected),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Pair:
        """Read what `to_json` wrote."""
        example = PreferenceExample.from_json(value)
        prompt_id = example.prompt.id
        return cls(
            example.prompt,
            _with_text(prompt_id, example.chosen, value["chosen_response"]),
            _with_text(prompt_id, example.rejected, value["rejected_response"]),
        )


def _beside_text(response: Response) -> dict[str, Any]:
    """Return what a response holds beside its text, in columns of one type each."""
    origin = response.origin.to_json()
    return {
        "finished": response.finished,
        "token_ids": json.dumps(response.token_ids),
        "tokenizer": response.tokenizer,
        "origin": {**origin, "sampling": json.dumps(origin["sampling"])},
    }


def _with_text(prompt_id: str, text: str, value: Mapping[str, Any]) -> Response:
    """Put a response together again."""
    origin = {**value["origin"], "sampling": json.loads(value["origin"]["sampling"])}
    return Response.from_json(
        {
            **value,
            "prompt_id": prompt_id,
            "text": text,
            "token_ids": json.loads(value["token_ids"]),
            "origin": origin,
        }
    )


@dataclass(frozen=True, slots=True)
class CompletionScore:
    """How probable one completion is: the sum over its tokens in nats, and how many there are."""

    sum_logprob: float
    tokens: int

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood, nats per token."""
        return -self.sum_logprob / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(mean_nll), as the paper's filter compares it; infinite where that overflows."""
        return math.exp(self.mean_nll) if self.mean_nll < 700 else math.inf


def dataset_response(prompt: Prompt, text: str) -> Response:
    """Wrap an answer of a data set, which nobody sampled, as a finished `Response`."""
    return Response(prompt.id, text, Origin(policy="dataset"))


def write_examples(folder: Path, split: Split, examples: Iterable[PreferenceExample]) -> None:
    """Write one split of a preference data set."""
    write_jsonl(_split_file(folder, split), (example.to_json() for example in examples))


def read_examples(folder: Path, split: Split) -> list[PreferenceExample]:
    """Read one split of a data artifact."""
    return _read(_split_file(folder, split), PreferenceExample.from_json)


def splits_in(folder: Path) -> tuple[Split, ...]:
    """Return the splits that a data artifact holds."""
    return tuple(split for split in SPLITS if _split_file(folder, split).is_file())


def read_split_prompts(folder: Path, split: Split) -> list[Prompt]:
    """Read the distinct prompts of one split of a data artifact, without their labels, in order."""
    prompts = {e.prompt.id: e.prompt for e in read_examples(folder, split)}
    return list(prompts.values())


def _split_file(folder: Path, split: Split) -> Path:
    return folder / f"{split}.jsonl"


def write_answers(folder: Path, answers: Iterable[tuple[Prompt, Response]]) -> None:
    """Write prompts with one response each: two files, whose lines belong together."""
    answers = list(answers)
    write_jsonl(folder / PROMPTS_FILE, (prompt.to_json() for prompt, _ in answers))
    write_jsonl(folder / RESPONSES_FILE, (response.to_json() for _, response in answers))


def read_answers(folder: Path) -> list[tuple[Prompt, Response]]:
    """Read an answering stage's prompts, each with its response."""
    return list(zip(read_prompts(folder), read_responses(folder), strict=True))


def read_prompts(folder: Path) -> list[Prompt]:
    """Read the prompts of an answering stage's artifact, in the order of its responses."""
    return _read(folder / PROMPTS_FILE, Prompt.from_json)


def read_responses(folder: Path) -> list[Response]:
    """Read the responses of an answering stage's artifact."""
    return _read(folder / RESPONSES_FILE, Response.from_json)


def write_pairs(folder: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs to learn from."""
    write_jsonl(folder / PAIRS_FILE, (pair.to_json() for pair in pairs))


def read_pairs(folder: Path) -> list[Pair]:
    """Read the pairs of an artifact."""
    return _read(folder / PAIRS_FILE, Pair.from_json)


def write_scores(folder: Path, scored: Iterable[tuple[Response, CompletionScore]]) -> None:
    """Write scores of responses; whose answer it was and its perplexity stand there for readers."""
    rows = (
        {
            "prompt_id": response.prompt_id,
            "response": response.id,
            "policy": response.origin.policy,
            "sum_logprob": score.sum_logprob,
            "tokens": score.tokens,
            "perplexity": min(score.perplexity, 1e308),  # JSON knows no infinity
        }
        for response, score in scored
    )
    write_jsonl(folder / SCORES_FILE, rows)


def read_scores(folder: Path) -> dict[str, CompletionScore]:
    """Read scores by response id; responses that could not be scored are not in it."""

    def score(row: Mapping[str, Any]) -> tuple[str, CompletionScore]:
        return row["response"], CompletionScore(row["sum_logprob"], row["tokens"])

    return dict(_read(folder / SCORES_FILE, score))


def write_judgements(folder: Path, judged: Iterable[tuple[Response, float]]) -> None:
    """Write what a judge makes of responses: a number each, the higher the better."""
    rows = ({"prompt_id": r.prompt_id, "response": r.id, "score": score} for r, score in judged)
    write_jsonl(folder / JUDGEMENTS_FILE, rows)


def read_judgements(folder: Path) -> dict[str, float]:
    """Read a judge's scores by response id; responses that it could not judge are not in it."""

    def judgement(row: Mapping[str, Any]) -> tuple[str, float]:
        return row["response"], row["score"]

    return dict(_read(folder / JUDGEMENTS_FILE, judgement))


def _read(path: Path, parse: Callable[[Mapping[str, Any]], Record]) -> list[Record]:
    """Read a file of records.

    Raises:
        DataError: the file cannot be read, or a line is no such record.
    """
    records = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            records.append(parse(row))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}, line {number}: not as this version of macpo writes it "
                f"({type(error).__name__}: {error}); run the config again"
            ) from error
    return records


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` to `path`, one JSON object a line, UTF-8, readable by eye (no escapes).

    Raises:
        TypeError: a row holds something that JSON cannot express.
        ValueError: a row holds a NaN or an infinity.
    """
    with path.open("wb") as file:
        for row in rows:
            try:
                line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
            except UnicodeEncodeError:
                # Half of a surrogate pair, which data sets hold as "\ud83d": UTF-8 has no place
                # for it, an escape has.
                line = json.dumps(row, ensure_ascii=True, allow_nan=False).encode()
            file.write(line + b"\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file that macpo wrote.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield _parse_object(line, f"{path}, line {number}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _parse_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8; write the file again") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}); write the file again") from None
    except RecursionError:
        raise DataError(f"{where}: not JSON (nested too deeply); write the file again") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: a JSON {type(value).__name__}, not an object; write the file again"
        )
    return value
