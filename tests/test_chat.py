"""Talking to policies: what each is asked, and what the commands do; the policies are scripted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from macpo.chat import COMMANDS, Partner, Talk
from macpo.config import SamplingConfig
from macpo.errors import DataError
from macpo.records import Origin, Prompt, Response

SAMPLING = SamplingConfig(max_new_tokens=7)


@dataclass
class Policy:
    """Says the given pieces, whatever it is asked; an exception among them is raised."""

    pieces: Sequence[str | BaseException] = ("Mix ", "flour.")
    forgotten: int = 0
    finished: bool = True
    asked: list[list[tuple[str, str]]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def stream(
        self,
        prompt: Prompt,
        tell: Callable[[str], None],
        sampling: SamplingConfig | None = None,
        *,
        seed: int = 0,
    ) -> Response:
        assert sampling is SAMPLING
        self.asked.append([(m.role, m.content) for m in prompt.messages])
        self.seeds.append(seed)
        said = ""
        for piece in self.pieces:
            if isinstance(piece, BaseException):
                raise piece
            tell(piece)
            said += piece
        return Response(prompt.id, said, Origin("student/positive"), self.finished)

    def forgotten_turns(self, prompt: Prompt) -> int:
        return self.forgotten


@dataclass
class Paper:
    """A screen that keeps what it shows."""

    text: str = ""
    notes: list[str] = field(default_factory=list)

    def begin(self, name: str) -> None:
        self.text += f"<{name}>"

    def show(self, text: str) -> None:
        self.text += text

    def end(self) -> None:
        self.text += "</>"

    def note(self, text: str) -> None:
        self.notes.append(text)


def talk_with(*policies: Policy, seed: int = 0) -> tuple[Talk, Paper]:
    paper = Paper()
    partners = [Partner(f"student@{i}", policy) for i, policy in enumerate(policies)]
    return Talk(partners, SAMPLING, paper, seed=seed), paper


def test_policy_sees_what_was_said_before() -> None:
    policy = Policy()
    talk, paper = talk_with(policy)

    assert talk.take("How do I bake bread?\n")
    assert talk.take("And then?")

    assert paper.text == "<student@0>Mix flour.</>" * 2
    assert policy.asked[1] == [
        ("user", "How do I bake bread?"),
        ("assistant", "Mix flour."),
        ("user", "And then?"),
    ]


def test_each_policy_keeps_its_own_conversation() -> None:
    one, other = Policy(["Yes."]), Policy(["No."])
    talk, paper = talk_with(one, other)
    talk.take("Is water brown?")
    talk.take("Sure?")

    assert paper.text == "<student@0>Yes.</><student@1>No.</>" * 2
    assert ("assistant", "Yes.") in one.asked[1]
    assert ("assistant", "No.") in other.asked[1]


def test_retry_asks_the_same_with_the_next_seed() -> None:
    policy = Policy()
    talk, paper = talk_with(policy, seed=5)
    talk.take("/retry")
    assert paper.notes == ["nothing was said yet"]

    for line in ("Hi", "/retry", "/retry", "And then?"):
        talk.take(line)

    assert policy.seeds == [5, 6, 7, 5]
    assert policy.asked[0] == policy.asked[1] == policy.asked[2] == [("user", "Hi")]
    assert len(policy.asked[3]) == 3


def test_reset_forgets_and_keeps_the_system_prompt() -> None:
    policy = Policy()
    talk, _ = talk_with(policy)
    for line in ("/system Be brief.", "Hi", "/reset", "Ho", "/system", "Now?"):
        talk.take(line)

    assert policy.asked[0] == [("system", "Be brief."), ("user", "Hi")]
    assert policy.asked[1] == [("system", "Be brief."), ("user", "Ho")]
    assert policy.asked[2][0] == ("user", "Ho")


def test_interrupt_ends_the_answer_and_keeps_what_was_said() -> None:
    policy = Policy(["Mix ", KeyboardInterrupt(), "flour."])
    other = Policy(["No."])
    talk, paper = talk_with(policy, other)

    assert talk.take("How?")
    assert paper.text == "<student@0>Mix  [stopped]</><student@1>No.</>"
    talk.take("And then?")
    assert policy.asked[1][1] == ("assistant", "Mix ")


def test_interrupt_before_the_first_word_leaves_no_turn() -> None:
    policy = Policy([KeyboardInterrupt()])
    talk, _ = talk_with(policy)
    talk.take("How?")
    talk.take("And then?")
    assert policy.asked[1] == [("user", "And then?")]


def test_what_a_model_writes_cannot_act_on_a_terminal() -> None:
    pieces = ["a\x1b", "[31", "mred\x1b[0m \x1b]0;title", "\x07b\rc\n\td\x08", "\u202ee", "\x1b[2"]
    talk, paper = talk_with(Policy(pieces))
    talk.take("Hi")

    assert paper.text == "<student@0>ared bc\n\td\N{REPLACEMENT CHARACTER}e2</>"


def test_escape_that_never_ends_does_not_swallow_the_answer() -> None:
    talk, paper = talk_with(Policy(["\x1b]0;", *["word "] * 500]))
    talk.take("Hi")
    assert paper.text.count("word") == 500


def test_ends_that_are_none_are_told() -> None:
    talk, paper = talk_with(Policy(["Mix"], finished=False), Policy([" "]))
    talk.take("Hi")
    assert paper.text == "<student@0>Mix [cut at max_new_tokens]</><student@1> [an empty answer]</>"
    assert talk.messages("student@1") == []


def test_turns_over_the_limit_and_prompts_over_it_are_told() -> None:
    talk, paper = talk_with(Policy(forgotten=4), Policy([DataError("too long; shorten it")]))
    assert talk.take("Hi")

    assert "student@0 no longer sees the first 4 messages" in paper.notes[0]
    assert paper.notes[1] == "student@1: too long; shorten it"


def test_conversation_is_saved_into_a_new_file(tmp_path: Path) -> None:
    talk, paper = talk_with(Policy(["Yes \ud83d."]), Policy(["No."]))
    path = tmp_path / "talk.jsonl"
    for line in ("/system Be brief.", "Sure?", f"/save {path}", f"/save {path}", "/save"):
        talk.take(line)
    talk.take(f"/save {tmp_path}/none/talk.jsonl")

    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["policy"] for line in lines] == ["student@0", "student@1"]
    assert [m["role"] for m in lines[0]["messages"]] == ["system", "user", "assistant"]
    assert lines[1]["messages"][2]["content"] == "No."
    assert paper.notes[1:] == [
        f"saved: {path}",
        f"{path} is there already; name another file",
        "/save needs the name of a file",
        f"{tmp_path}/none/talk.jsonl cannot be written: No such file or directory; name another "
        "file",
    ]


def test_commands_are_listed_and_unknown_ones_told_the_nearest() -> None:
    policy = Policy()
    talk, paper = talk_with(policy)

    assert not talk.take("/quit")
    assert talk.take("  \n")
    assert talk.take("/help")
    assert all(name in paper.notes[0] for name in COMMANDS)
    assert talk.take("/rest")
    assert "no command /rest; did you mean /reset?" in paper.notes[1]
    assert not policy.asked
    assert talk.take("//etc is a folder")
    assert policy.asked == [[("user", "/etc is a folder")]]
