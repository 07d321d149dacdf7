"""Answers told while they come about: what is told is what `respond` would have returned.

A backend streams if its generator has `stream`, as both of macpo's own have; others tell an answer
when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from macpo.config import SamplingConfig
from macpo.generation.protocol import Generator
from macpo.records import Prompt, Response

if TYPE_CHECKING:
    from macpo.models.chat import Chat


@runtime_checkable
class Streams(Protocol):
    """A generator that can also tell an answer piece by piece."""

    def stream(
        self,
        prompt: Prompt,
        sampling: SamplingConfig,
        seed_parts: Sequence[str | int],
        tell: Callable[[str], None],
    ) -> Response:
        """Answer one prompt.

        Args:
            prompt: as in `macpo.generation.protocol.Generator.respond`.
            sampling: likewise.
            seed_parts: likewise.
            tell: called with each piece of text, which together are the response's. What it raises
                ends the answer.

        Returns:
            What `respond` returns for this prompt alone.
        """
        ...


def stream_answer(
    generator: Generator,
    prompt: Prompt,
    sampling: SamplingConfig,
    seed_parts: Sequence[str | int],
    tell: Callable[[str], None],
) -> Response:
    """Answer one prompt; see `Streams.stream`, whose arguments these are."""
    if isinstance(generator, Streams):
        return generator.stream(prompt, sampling, seed_parts, tell)
    [response] = generator.respond([prompt], sampling, seed_parts)
    if response.text:
        tell(response.text)
    return response


class Spoken:
    """Turns the tokens of one answer into pieces of its text.

    Args:
        chat: of the model that answers.
        tell: is called with each piece.
    """

    def __init__(self, chat: Chat, tell: Callable[[str], None]) -> None:
        self._chat = chat
        self._tell = tell
        self._ids: list[int] = []
        self._told = ""

    def __call__(self, token: int) -> None:
        """Take the next token."""
        self._ids.append(token)
        text = self._chat.decode_begun(self._ids)
        # Some decoders mend what stands before a token; that is told when it has come to rest.
        if len(text) > len(self._told) and text.startswith(self._told):
            self.end(text)

    def end(self, text: str) -> None:
        """Tell what of a text was not told yet: at last, of the whole answer."""
        if len(text) > len(self._told):
            self._tell(text[len(self._told) :])
            self._told = text
