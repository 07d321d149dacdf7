"""Conversations as token ids: one place where prompts and completions are encoded and cut.

    chat = Chat(load_tokenizer(resolved))
    prompt_ids = chat.encode_prompt(prompt, limit=512).ids
    completion_ids = chat.encode_completion(response, limit=512)
    row = prompt_ids + completion_ids       # training and generation meet at the same seam

The two are encoded apart and joined as ids, at the place where generation starts. Which of them a
token belongs to is known from their lengths; that the pad token may be the end-of-turn token
therefore does not matter.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from macpo.errors import DataError, ModelError
from macpo.models.chat_template import ChatTemplate
from macpo.models.encoding import TextEncoder
from macpo.records import Message, Prompt, Response
from macpo.seeds import digest

_log = logging.getLogger("macpo")


MEMORY = 8192
"""Encodings that a chat remembers of prompts, and as many of answers: stages share them."""


SystemTurn = Literal["auto", "merge", "template"]

MERGING = (
    "its chat template has no system turns, so a system text goes in front of the first user turn"
)


class PromptTooLong(DataError):
    """The last turn of a prompt alone is over the limit; nothing is left to drop.

    Attributes:
        tokens: length of the prompt with only its last turn (and system message), in tokens.
        limit: the limit, in tokens.
    """

    def __init__(self, prompt_id: str, tokens: int, limit: int) -> None:
        super().__init__(
            f"prompt {prompt_id}: {tokens} tokens without any earlier turn, over the limit of "
            f"{limit}; raise limits.prompt_tokens or leave it out"
        )
        self.tokens = tokens
        self.limit = limit


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids, up to where the assistant's answer starts.

    Attributes:
        ids: never empty.
        dropped_turns: messages at the start that were left out to fit the limit.
    """

    ids: tuple[int, ...]
    dropped_turns: int


class Chat:
    """A tokenizer with its chat template.

    Attributes:
        tokenizer: the transformers tokenizer.
        template: what writes conversations as text.
        end_of_turn: the token that ends an assistant's turn: the first special token that the
            template writes after an answer, else EOS.
        writes_system: the template writes system turns.
        merges_system: a system text goes in front of the first user turn.
        fingerprint: digest of vocabulary, merges, added tokens, normalisation and template; equal
            fingerprints mean interchangeable token ids.

    Args:
        tokenizer: a fast transformers tokenizer, as `load_tokenizer` returns it.
        template_args: what the template is given beside the messages, such as `enable_thinking`.
        system_turn: `merge` puts a system text in front of the first user turn, `template` leaves
            it to the template, `auto` does the former where the template would refuse or skip it.
        stops: further tokens that end an answer, as generation_config.json lists them.
        name: of the model, for messages.

    Raises:
        ModelError: no template, no end of turn, an answer that does not begin where the template
            says that it does, or not a fast tokenizer.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template_args: Mapping[str, object] | None = None,
        system_turn: SystemTurn = "auto",
        stops: Iterable[int] = (),
        name: str = "",
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} has no tokenizer.json (is no 'fast' tokenizer); "
                "convert it with transformers and save it beside the model"
            )
        self.tokenizer = tokenizer
        self._name = name or str(tokenizer.name_or_path) or "the tokenizer"
        self.template = ChatTemplate(tokenizer, template_args or {}, self._name)
        control = self._control_ids()
        probe = TextEncoder(tokenizer, control, contexts=())
        before, after = self.template.around_answer()
        self.end_of_turn = self._find_end_of_turn(probe.control_tokens(after))
        # Blanks belong to the answer: tokenizers take a space and a word for one token.
        self._lead, self._opening = (before, "") if not before.strip() else ("", before)
        self.writes_system = self.template.writes_system()
        self.merges_system = system_turn == "merge" or (
            system_turn == "auto" and not self.writes_system
        )
        self._said_merging = False
        # An end of turn separates best. Tokenizers that put a space after it too (the first
        # Llama's) leave a control character alone, or a line break.
        spelled_end = str(tokenizer.convert_ids_to_tokens(self.end_of_turn))
        self._text = TextEncoder(tokenizer, control, contexts=(spelled_end, "\x01", "\n"))
        spelled = filter(None, map(str, tokenizer.convert_ids_to_tokens(sorted(control))))
        self._spellings = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._stops = frozenset(i for i in stops if i < len(tokenizer))
        marked = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._silent = frozenset(tokenizer.all_special_ids) | marked | self.stop_ids
        args = [dict(template_args)] if template_args else []
        self.fingerprint = digest(
            [_backend_json(tokenizer), self.template.source, self.end_of_turn, *args]
        )
        # Per chat, so that a memory goes with its tokenizer; errors are not remembered.
        self._remembered_prompt = lru_cache(MEMORY)(self._encode_prompt)
        self._remembered_answer = lru_cache(MEMORY)(self._encode_answer)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens at which an answer ends when a model writes one.

        The end of turn, the tokenizer's EOS, and those that the generation config lists.
        """
        ends = {self.end_of_turn, self.tokenizer.eos_token_id, *self._stops}
        return frozenset(i for i in ends if i is not None)

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        """The tokens that SentencePiece models spell unknown characters with, byte by byte."""
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        ids = self.tokenizer.convert_tokens_to_ids(names)
        found = [(i, name) for i, name in zip(ids, names, strict=True) if i is not None]
        return frozenset(i for i, n in found if self.tokenizer.convert_ids_to_tokens(i) == n)

    def encode_prompt(self, prompt: Prompt, limit: int) -> EncodedPrompt:
        """Encode a conversation up to where the assistant answers.

        Over the limit, the oldest turns go first, a user's together with the answer to it; a
        system message and the last user turn stay. Spellings of special tokens inside messages
        are changed (see `TextEncoder.neutralise`).

        Raises:
            PromptTooLong: what must stay is over `limit` tokens.
            DataError: the template refuses the conversation.
        """
        return self._remembered_prompt(prompt, limit)

    def _encode_prompt(self, prompt: Prompt, limit: int) -> EncodedPrompt:
        """See `encode_prompt`; a prompt's id is a hash of its messages, so errors name the same."""
        if not prompt.messages or prompt.messages[-1].role != "user":
            raise DataError(f"prompt {prompt.id}: its last message is not the user's")
        neutral = [Message(m.role, self._text.neutralise(m.content)) for m in prompt.messages]
        head = neutral[:1] if neutral[0].role == "system" else []
        turns = neutral[len(head) :]

        def encode(dropped: int) -> tuple[int, ...]:
            messages = self._with_system(head, turns[dropped:])
            text = self.template.render(messages, prompt.id, answer_next=True)
            return self._text.encode(text + self._opening)

        dropped, ids = _fewest_dropped(turns, encode, limit)
        if len(ids) > limit:
            raise PromptTooLong(prompt.id, len(ids), limit)
        return EncodedPrompt(ids, dropped)

    def encode_conversation(self, prompt: Prompt, answer: str, limit: int) -> EncodedPrompt:
        """Encode a whole conversation with its answer, as the template writes it, once.

        For models that read an answer instead of writing one, such as reward models. Special tokens
        are those of the template: where it writes a BOS there is one, and no other is added. Over
        the limit the oldest turns go first, as in `encode_prompt`; if that is not enough, the end
        is cut off: `ids` has `limit` tokens then.

        Raises:
            DataError: the template refuses the conversation.
        """
        neutral = [Message(m.role, self._text.neutralise(m.content)) for m in prompt.messages]
        last = Message("assistant", self._text.neutralise(answer))
        head = neutral[:1] if neutral[0].role == "system" else []
        turns = neutral[len(head) :]

        def encode(dropped: int) -> tuple[int, ...]:
            messages = [*self._with_system(head, turns[dropped:]), last]
            return self._text.encode(self.template.render(messages, prompt.id, answer_next=False))

        dropped, ids = _fewest_dropped(turns, encode, limit)
        return EncodedPrompt(ids[:limit], dropped)

    def _with_system(self, head: Sequence[Message], turns: Sequence[Message]) -> list[Message]:
        """Put a system turn before the others, or its text in front of the first user turn."""
        if not head or not self.merges_system:
            return [*head, *turns]
        if not self._said_merging:
            self._said_merging = True
            _log.warning("%s: %s", self._name, MERGING)
        at = next(i for i, turn in enumerate(turns) if turn.role == "user")
        merged = Message("user", f"{head[0].content}\n\n{turns[at].content}")
        return [*turns[:at], merged, *turns[at + 1 :]]

    def encode_completion(self, response: Response, limit: int) -> tuple[int, ...]:
        """Encode an answer, with the end of turn last if it is finished.

        Ids that were sampled with this very tokenizer are taken as they are; other text is
        encoded, spellings of special tokens changed as in prompts. Beyond `limit` tokens the end
        is cut off, and the end of turn with it.

        Raises:
            DataError: nothing is left but the end of turn, or nothing at all.
        """
        if response.token_ids and response.tokenizer == self.fingerprint:
            ids = response.token_ids
        else:
            ids = self._remembered_answer(response.text)
            ids += (self.end_of_turn,) if response.finished else ()
        ids = ids[:limit]
        if not set(ids) - self.stop_ids:
            raise DataError(f"answer to prompt {response.prompt_id}: empty; leave the row out")
        return ids

    def changes(self, text: str) -> bool:
        """Say whether a text spells special tokens, and so is changed before it is encoded."""
        return self._spellings.search(text) is not None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without end of turn and other special tokens."""
        text = self._text.decode_following([i for i in ids if i not in self._silent])
        return text.removeprefix(self._lead)

    def decode_begun(self, ids: Sequence[int]) -> str:
        """Return as much of an answer's text as the tokens to come leave as it is.

        A character may take several tokens; until the last of them it is not shown. Tokens that
        are single bytes wait for the next one that is not: a byte that fits no character spoils
        all bytes before it.
        """
        heard = [i for i in ids if i not in self._silent]
        while heard and heard[-1] in self._byte_ids:
            heard.pop()
        text = self._text.decode_following(heard)
        if self._lead.startswith(text):
            return ""
        return text.removeprefix(self._lead).rstrip("\N{REPLACEMENT CHARACTER}")

    def _encode_answer(self, text: str) -> tuple[int, ...]:
        """Encode the text of an answer, without an end of turn."""
        return self._text.encode_following(self._leading(text))

    def _leading(self, text: str) -> str:
        """Neutralise an answer and put before it what the template writes there."""
        return self._lead + self._text.neutralise(text) if text else ""

    def _control_ids(self) -> frozenset[int]:
        """Return the tokens that only the template may write.

        These are all special tokens, and the added tokens that the template uses although they
        are not marked as special. Other added tokens (runs of blanks, `<think>`) are text.
        """
        added = self.tokenizer.added_tokens_decoder
        used = self.tokenizer(self.template.example, add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        words = {i for i, token in added.items() if token.content.replace("▁", " ").strip()}
        special = {i for i, token in added.items() if token.special}
        return frozenset(special | (words & set(used)) | set(self.tokenizer.all_special_ids))

    def check_vocabulary(self, size: int) -> None:
        """Check that a model with `size` embeddings has the tokens that the template writes.

        Raises:
            ModelError: it has not: tokens were added to the tokenizer, and none to the model.
        """
        ids = self._text.encode(self.template.example + self._opening)
        beyond = max((*ids, self.end_of_turn))
        if beyond >= size:
            token = self.tokenizer.convert_ids_to_tokens(beyond)
            raise ModelError(
                f"{self._name}: the chat template writes {token!r}, token {beyond}, but the model "
                f"has {size} embeddings; resize them and save the model, or set another "
                "chat_template"
            )

    def _find_end_of_turn(self, after: Sequence[int]) -> int:
        """Choose the end of turn from the special tokens after an answer, else EOS."""
        end = after[0] if after else self.tokenizer.eos_token_id
        if not isinstance(end, int):
            raise ModelError(
                "no token ends an assistant's turn: the chat template writes no special token "
                "after an answer and the tokenizer has no EOS; set eos_token in its "
                "tokenizer_config.json, or another chat_template"
            )
        return end


def _fewest_dropped(
    turns: Sequence[Message], encode: Callable[[int], tuple[int, ...]], limit: int
) -> tuple[int, tuple[int, ...]]:
    """Drop as few of the oldest turns as a limit asks for, so that a user's turn comes first.

    Found from the end, by twos, fours and so on, then by halves: a conversation of thousands of
    turns is encoded some twenty times, mostly a short end of it.

    Args:
        turns: the last one is a user's.
        encode: encodes a conversation without its first so many turns.
        limit: of tokens.

    Returns:
        How many turns are dropped, and the ids; over the limit where the last user turn alone is.
    """
    ids = encode(0)
    if len(ids) <= limit:
        return 0, ids
    starts = [i for i, turn in enumerate(turns) if i and turn.role == "user"]
    if not starts:
        return 0, ids
    fits, ids, step = len(starts) - 1, encode(starts[-1]), 1
    fails = -1
    while len(ids) <= limit and fits > fails + 1:
        tried = max(fits - step, fails + 1) if fails < 0 else (fits + fails) // 2
        more = encode(starts[tried])
        if len(more) <= limit:
            fits, ids, step = tried, more, 2 * step
        else:
            fails = tried
    return starts[fits], ids


def _backend_json(tokenizer: Any) -> dict[str, Any]:
    """Return what decides the ids of a text; padding, truncation and BOS rules do not."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("padding", "truncation", "post_processor"):
        content.pop(key, None)
    return content
