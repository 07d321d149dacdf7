"""Text to token ids and back, in the middle of a conversation.

Two things that tokenizers do are wrong there. They turn the *spelling* of a special token into the
token, so that a data set could end a turn or speak as the system; and SentencePiece tokenizers put
a space before whatever they encode and take one away from whatever they decode.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from macpo.errors import DataError

# Texts that a context for encoding must leave as they are.
PROBES = ("Hello", " Hello", "\nHello", "\n\nHello", "(1)")

NEUTRALISING_ROUNDS = 64


class TextEncoder:
    """Encodes text that follows other tokens, and decodes what follows other tokens.

    Args:
        tokenizer: a fast transformers tokenizer (with a `tokenizers` backend).
        control: ids that text must never produce.
        contexts: texts to try as the context that stands for "other tokens", best first; the
            first one that leaves the `PROBES` intact is used, and none if none does.
    """

    def __init__(self, tokenizer: Any, control: Iterable[int], contexts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._control = frozenset(control)
        self._unknown = tokenizer.unk_token_id
        self._context = ""
        self._context_ids: tuple[int, ...] = ()
        for context in contexts:
            if all(self._keeps(context, probe) for probe in PROBES):
                self._context = context
                self._context_ids = self.encode(context)
                break

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text` as the tokenizer gives them; special tokens are recognised."""
        return tuple(self._encoded(text)["input_ids"])

    def neutralise(self, text: str) -> str:
        """Change `text` so that it encodes to no control token.

        A space goes behind the first character of every spelling of one: `<|im_end|>` becomes
        `< |im_end|>`, the smallest change that any tokenizer reads as plain text. A control token
        spelled with one character is replaced by a space, and half of a surrogate pair, which
        cannot be encoded at all, by U+FFFD. Other text is returned as it is.

        Raises:
            DataError: the text still spells one after many changes.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for _ in range(NEUTRALISING_ROUNDS):
            controls = self._controls(text)
            if not controls:
                return text
            pieces: list[str] = []
            at = 0
            for _, start, end in controls:
                if start < at:  # inside of the one before: the next round finds what is left
                    continue
                kept = start + 1 if end - start > 1 else start
                pieces += (text[at:kept], " ")
                at = kept if end - start > 1 else end
            text = "".join((*pieces, text[at:]))
        raise DataError(f"text spells special tokens in a way that cannot be undone: {text[:60]!r}")

    def encode_following(self, text: str) -> tuple[int, ...]:
        """Return the ids of `text` as it follows other tokens, without a dummy space before it."""
        if not text:
            return ()
        ids = self.encode(self._context + text)
        length = len(self._context_ids)
        if ids[:length] != self._context_ids:  # the context merged with an odd first character
            return self.encode(text)
        return ids[length:]

    def decode_following(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` as they follow other tokens, spaces kept; the inverse."""
        context = self._decoded(self._context_ids)
        whole = self._decoded((*self._context_ids, *ids))
        return whole[len(context) :] if whole.startswith(context) else self._decoded(ids)

    def control_tokens(self, text: str) -> tuple[int, ...]:
        """Return the control tokens that `text` encodes to, in order."""
        return tuple(token for token, _, _ in self._controls(text))

    def _controls(self, text: str) -> list[tuple[int, int, int]]:
        """Return the control tokens in `text` with where each is spelled, without blanks before."""
        encoded = self._encoded(text)
        controls = []
        for token, (start, end) in zip(
            encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            spelling = text[start:end]
            if self._is_control(token, spelling):
                controls.append((token, end - len(spelling.lstrip() or spelling), end))
        return controls

    def _is_control(self, token: int, spelling: str) -> bool:
        """Tell a control token from an unknown character, which gives the same id as `<unk>`."""
        if token not in self._control:
            return False
        return bool(token != self._unknown or spelling.strip() == self._tokenizer.unk_token)

    def _keeps(self, context: str, probe: str) -> bool:
        """Say whether `probe` after `context` is encoded on its own and decoded unchanged."""
        ids, whole = self.encode(context), self.encode(context + probe)
        apart = whole[: len(ids)] == ids
        return apart and self._decoded(whole) == self._decoded(ids) + probe

    def _encoded(self, text: str) -> Any:
        return self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,  # a text longer than the model's context is our caller's business
        )

    def _decoded(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
