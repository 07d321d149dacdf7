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
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from macpo.errors import DataError, ModelError
from macpo.models.encoding import TextEncoder
from macpo.models.templates import BUILT_IN
from macpo.records import Message, Prompt, Response
from macpo.seeds import digest

ANSWER = "macpo"
"""Stands for an assistant's answer when the template is looked at."""

# Llama 3's template and others write today's date into the prompt: yesterday's run could not be
# resumed. They get a fixed one, that of Llama 3.1's own default.
FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    "|replace('%d', '26')|replace('%b', 'Jul')|replace('%B', 'July')|replace('%m', '07')"
    "|replace('%Y', '2024')|replace('%y', '24')|replace('%A', 'Friday')|replace('%a', 'Fri')"
    "|replace('%H', '00')|replace('%M', '00')|replace('%S', '00') }}{%- endmacro +%}"
)


MEMORY = 8192
"""Encodings that a chat remembers of prompts, and as many of answers: stages share them."""


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
        end_of_turn: the token that ends an assistant's turn: the first special token that the
            template writes after an answer, else EOS.
        fingerprint: digest of vocabulary, merges, added tokens, normalisation and template; equal
            fingerprints mean interchangeable token ids.

    Args:
        tokenizer: a fast transformers tokenizer, as `load_tokenizer` returns it.

    Raises:
        ModelError: no template, no end of turn, or not a fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} has no tokenizer.json (is no 'fast' tokenizer); "
                "convert it with transformers and save it beside the model"
            )
        self.tokenizer = tokenizer
        self._template = _template_of(tokenizer)
        control = self._control_ids()
        probe = TextEncoder(tokenizer, control, contexts=())
        before, after = self._around_answer()
        self.end_of_turn = self._find_end_of_turn(probe.control_tokens(after))
        self._lead = before
        # An end of turn separates best. Tokenizers that put a space after it too (the first
        # Llama's) leave a control character alone, or a line break.
        spelled_end = str(tokenizer.convert_ids_to_tokens(self.end_of_turn))
        self._text = TextEncoder(tokenizer, control, contexts=(spelled_end, "\x01", "\n"))
        spelled = filter(None, map(str, tokenizer.convert_ids_to_tokens(sorted(control))))
        self._spellings = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._silent = frozenset(tokenizer.all_special_ids) | {self.end_of_turn}
        self.fingerprint = digest([_backend_json(tokenizer), self._template, self.end_of_turn])
        # Per chat, so that a memory goes with its tokenizer; errors are not remembered.
        self._remembered_prompt = lru_cache(MEMORY)(self._encode_prompt)
        self._remembered_answer = lru_cache(MEMORY)(self._encode_answer)

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
        dropped = 0
        while True:
            ids = self._text.encode(self._render_prompt([*head, *turns[dropped:]], prompt.id))
            if len(ids) <= limit:
                return EncodedPrompt(ids, dropped)
            later = [i for i in range(dropped + 1, len(turns)) if turns[i].role == "user"]
            if not later:
                raise PromptTooLong(prompt.id, len(ids), limit)
            dropped = later[0]

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
        if not set(ids) - {self.end_of_turn}:
            raise DataError(f"answer to prompt {response.prompt_id}: empty; leave the row out")
        return ids

    def changes(self, text: str) -> bool:
        """Say whether a text spells special tokens, and so is changed before it is encoded."""
        return self._spellings.search(text) is not None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer, without end of turn and other special tokens."""
        text = self._text.decode_following([i for i in ids if i not in self._silent])
        return text.removeprefix(self._lead)

    def _encode_answer(self, text: str) -> tuple[int, ...]:
        """Encode the text of an answer, without an end of turn."""
        return self._text.encode_following(self._leading(text))

    def _leading(self, text: str) -> str:
        """Neutralise an answer and put before it what the template writes there."""
        return self._lead + self._text.neutralise(text) if text else ""

    def _render_prompt(self, messages: Sequence[Message], prompt_id: str) -> str:
        """Render a conversation, with the start of the assistant's turn.

        Raises:
            DataError: the template refuses it.
        """
        try:
            return self._render(messages, answer_next=True)
        except Exception as error:  # templates raise what they like, mostly jinja2 errors
            raise DataError(
                f"prompt {prompt_id}: the chat template refuses this conversation ({error})"
            ) from error

    def _render(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """Render messages with transformers' sandboxed template engine."""
        dated = FIXED_DATE + self._template if "strftime_now" in self._template else self._template
        return str(
            self.tokenizer.apply_chat_template(
                [message.to_json() for message in messages],
                chat_template=dated,
                tokenize=False,
                add_generation_prompt=answer_next,
            )
        )

    def _probe(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """Render a conversation that every template must accept.

        Raises:
            ModelError: this one does not.
        """
        try:
            return self._render(messages, answer_next=answer_next)
        except Exception as error:  # as above
            raise ModelError(
                f"the chat template cannot render a plain conversation ({error}); set "
                f"chat_template to {', '.join(BUILT_IN)} or a Jinja file"
            ) from error

    def _control_ids(self) -> frozenset[int]:
        """Return the tokens that only the template may write.

        These are all special tokens, and the added tokens that the template uses although they
        are not marked as special. Other added tokens (runs of blanks, `<think>`) are text.
        """
        added = self.tokenizer.added_tokens_decoder
        conversation = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
        rendered = self._probe(conversation, answer_next=True)
        used = self.tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
        words = {i for i, token in added.items() if token.content.replace("▁", " ").strip()}
        special = {i for i, token in added.items() if token.special}
        return frozenset(special | (words & set(used)) | set(self.tokenizer.all_special_ids))

    def _around_answer(self) -> tuple[str, str]:
        """Return what the template writes between the start of a turn and the answer, and after it.

        The former is blank or empty: Vicuna's `ASSISTANT:` is followed by a space and the answer.
        Templates that write more there (an empty thought, for example) leave that to the model.
        """
        question = Message("user", "a")
        start = self._probe([question], answer_next=True)
        whole = self._probe([question, Message("assistant", ANSWER)], answer_next=False)
        head, found, after = whole.rpartition(ANSWER)
        if not found:
            raise ModelError("the chat template leaves out the assistant's answers; set another")
        between = head.removeprefix(start) if head.startswith(start) else ""
        return between if between.isspace() else "", after

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


def _template_of(tokenizer: Any) -> str:
    """Return the tokenizer's chat template.

    Raises:
        ModelError: it has none.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: has no chat template of its own; set "
            f"the model's chat_template to {', '.join(BUILT_IN)} or a Jinja file"
        )
    return str(tokenizer.get_chat_template())


def _backend_json(tokenizer: Any) -> dict[str, Any]:
    """Return what decides the ids of a text; padding, truncation and BOS rules do not."""
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("padding", "truncation", "post_processor"):
        content.pop(key, None)
    return content
