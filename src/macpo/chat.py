"""Talking to one or two policies of a run: the conversation and its commands, without a terminal.

    talk = Talk([Partner("student@2", policy)], sampling, screen)
    talk.take("How do I bake bread?")     # the answer arrives at the screen piece by piece
    talk.take("/retry")

Each policy keeps a conversation of its own: the user's words and its own answers. An answer is
drawn as `RunPolicy.answer` draws it for that conversation and that seed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from macpo.config import SamplingConfig
from macpo.errors import DataError
from macpo.paths import user_path
from macpo.records import Message, Prompt, Response
from macpo.report.text import PlainStream

COMMANDS = {
    "/reset": "forget what was said",
    "/retry": "draw the last answer again, with another seed",
    "/system TEXT": "answer under a system prompt from now on (without TEXT: under none)",
    "/save FILE": "write the conversation into a new file, a line of JSON for each policy",
    "/help": "show this",
    "/quit": "end, as Ctrl-D does; Ctrl-C stops an answer",
}


class Talks(Protocol):
    """What is asked of a policy: a `macpo.run_api.RunPolicy`."""

    def stream(
        self,
        prompt: Prompt,
        tell: Callable[[str], None],
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
    ) -> Response:
        """See `macpo.run_api.RunPolicy.stream`."""
        ...

    def forgotten_turns(self, prompt: Prompt) -> int:
        """See `macpo.run_api.RunPolicy.forgotten_turns`."""
        ...


class Screen(Protocol):
    """Where a talk is shown."""

    def begin(self, name: str) -> None:
        """An answer begins: whose it is."""
        ...

    def show(self, text: str) -> None:
        """A piece of the answer, fit for a terminal."""
        ...

    def end(self) -> None:
        """The answer has ended."""
        ...

    def note(self, text: str) -> None:
        """Something else to be known."""
        ...


@dataclass(slots=True)
class Turn:
    """What the user said, and what each partner answered, by name; who said nothing is not there.

    `attempt` counts how often it was asked again.
    """

    user: str
    answers: dict[str, str] = field(default_factory=dict)
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Partner:
    """A policy to talk to, under a name such as `student@2`."""

    name: str
    policy: Talks


class Talk:
    """A conversation with one policy, or with two at once.

    Args:
        partners: who answers, in this order.
        sampling: how.
        screen: where it is shown.
        system: the system prompt to begin with.
        seed: decides, together with the conversation, what is drawn; `/retry` takes the next one.
    """

    def __init__(
        self,
        partners: Sequence[Partner],
        sampling: SamplingConfig,
        screen: Screen,
        *,
        system: str = "",
        seed: int = 0,
    ) -> None:
        self.partners = tuple(partners)
        self.sampling = sampling
        self.screen = screen
        self.system = system
        self.seed = seed
        self.turns: list[Turn] = []

    def take(self, line: str) -> bool:
        """Take a line of the user's: a command, or something to be answered.

        A line that begins with two slashes is said with one.

        Returns:
            Whether the talk goes on.
        """
        text = line.strip()
        if text.startswith("/") and not text.startswith("//"):
            return self._obey(text)
        if text:
            self._ask(Turn(text.removeprefix("/") if text.startswith("//") else text))
        return True

    def messages(self, name: str) -> list[Message]:
        """Return a partner's conversation so far, without turns that it did not answer."""
        said = [Message("system", self.system)] if self.system else []
        for turn in self.turns:
            if name in turn.answers:
                answer = Message("assistant", turn.answers[name])
                said += [Message("user", turn.user), answer]
        return said

    def _obey(self, text: str) -> bool:
        command, _, argument = text.partition(" ")
        argument = argument.strip()
        if command == "/quit":
            return False
        if command == "/reset":
            self.turns.clear()
            self.screen.note("what was said is forgotten")
        elif command == "/retry":
            self._retry()
        elif command == "/system":
            self.system = argument
            self.screen.note("system prompt set" if argument else "no system prompt")
        elif command == "/save":
            self._save(argument)
        elif command == "/help":
            self.screen.note("\n".join(f"{name:<14}{what}" for name, what in COMMANDS.items()))
        else:
            self.screen.note(_unknown(command))
        return True

    def _retry(self) -> None:
        if not self.turns:
            self.screen.note("nothing was said yet")
            return
        turn = self.turns.pop()
        self._ask(Turn(turn.user, attempt=turn.attempt + 1))

    def _ask(self, turn: Turn) -> None:
        """Let every partner answer; the turn is kept if anybody said something."""
        for partner in self.partners:
            prompt = Prompt((*self.messages(partner.name), Message("user", turn.user)))
            try:
                answer = self._answer(partner, prompt, self.seed + turn.attempt)
            except DataError as error:
                self.screen.note(f"{partner.name}: {error}")
                continue
            if answer.strip():
                turn.answers[partner.name] = answer
        if turn.answers:
            self.turns.append(turn)

    def _answer(self, partner: Partner, prompt: Prompt, seed: int) -> str:
        """Stream an answer to the screen and return it, or what there is of it after Ctrl-C."""
        pieces: list[str] = []
        forgotten = partner.policy.forgotten_turns(prompt)
        if forgotten:
            self.screen.note(
                f"{partner.name} no longer sees the first {forgotten} messages, which are over the "
                "run's limits.prompt_tokens; /reset begins anew"
            )
        with self._shown(partner.name) as show:

            def tell(piece: str) -> None:
                pieces.append(piece)
                show(piece)

            try:
                response = partner.policy.stream(prompt, tell, self.sampling, seed=seed)
            except KeyboardInterrupt:
                show(" [stopped]")
                return "".join(pieces)
            if response.is_empty:
                show("[an empty answer]")
            elif not response.finished:
                show(" [cut at max_new_tokens]")
        return response.text

    @contextmanager
    def _shown(self, name: str) -> Iterator[Callable[[str], None]]:
        """Open an answer on the screen; what is shown is made fit for a terminal."""
        plain = PlainStream()
        self.screen.begin(name)
        try:
            yield lambda piece: self.screen.show(plain.feed(piece))
        finally:
            self.screen.show(plain.end())
            self.screen.end()

    def _save(self, argument: str) -> None:
        if not argument:
            self.screen.note("/save needs the name of a file")
            return
        lines = [json.dumps(self._record(p.name), ensure_ascii=True) for p in self.partners]
        try:
            with user_path(argument).open("x", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        except FileExistsError:
            self.screen.note(f"{argument} is there already; name another file")
        except OSError as error:
            self.screen.note(f"{argument} cannot be written: {error.strerror}; name another file")
        else:
            self.screen.note(f"saved: {argument}")

    def _record(self, name: str) -> dict[str, Any]:
        return {
            "policy": name,
            "sampling": self.sampling.model_dump(),
            "seed": self.seed,
            "messages": [message.to_json() for message in self.messages(name)],
        }


def _unknown(command: str) -> str:
    names = [name.partition(" ")[0] for name in COMMANDS]
    near = difflib.get_close_matches(command, names, n=1)
    meant = f"did you mean {near[0]}?" if near else "/help lists them"
    return f"there is no command {command[:40]}; {meant} (// says a line that begins with /)"
