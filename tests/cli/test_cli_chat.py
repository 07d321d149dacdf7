"""`macpo chat`: a pipe gets answers alone, and they are those of `RunPolicy.answer`."""

from __future__ import annotations

import io
import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from macpo.chat import Talk
from macpo.cli.chat import TerminalScreen
from macpo.config import SamplingConfig
from macpo.records import Message
from macpo.report.text import plain_text
from macpo.run_api import open_run
from tests.runs import CliResult, FinishedRun, hear_interrupts, python_environment, run_cli


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> object:
    def run(lines: str, *args: str | Path) -> CliResult:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return run_cli(["chat", *args])

    return run


def test_pipe_gets_the_answers_of_one_conversation(finished: FinishedRun, ask: object) -> None:
    assert callable(ask)
    shown = ask("Is water brown?\nWhy?\n/reset\nWhy?\n", finished.folder, "--seed", "3")

    with open_run(finished.folder) as run:
        student = run.policy("student")
        first = student.answer(["Is water brown?"], seed=3)[0].text
        turns = [Message("user", "Is water brown?"), Message("assistant", first)]
        second = student.answer([[*turns, Message("user", "Why?")]], seed=3)[0].text
        third = student.answer(["Why?"], seed=3)[0].text
    assert shown.code == 0
    said = shown.out.replace(" [cut at max_new_tokens]", "").replace("[an empty answer]", "")
    assert said == "".join(plain_text(text) + "\n" for text in (first, second, third))
    assert "talking to student@2;" in shown.err
    assert "what was said is forgotten" in shown.err


def test_two_policies_answer_under_their_names(finished: FinishedRun, ask: object) -> None:
    assert callable(ask)
    options = ("--policy", "weak-a@1", "--against", "weak-b@0", "--temperature", "0")
    shown = ask("Name a dog.\n", finished.folder, *options, "--max-new-tokens", "5")

    greedy = SamplingConfig(temperature=0, max_new_tokens=5)
    with open_run(finished.folder) as run:
        texts = [
            run.policy(name, round).answer(["Name a dog."], greedy)[0].text
            for name, round in (("weak-a", 1), ("weak-b", 0))
        ]
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"weak-a@1: {plain_text(texts[0])}".splitlines()[0])
    assert f"weak-b@0: {plain_text(texts[1])}".splitlines()[0] in shown.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "studnet"], "no agent 'studnet' in this run; did you mean student?"),
        (
            ["--against", "student@2"],
            "both sides are student@2; name another with --policy or --ag",
        ),
        (["--temperature", "0", "--top-p", "0.5"], "temperature 0 is greedy decoding, without top"),
        (["--against", "no/run"], "no/run: no run here"),
    ],
)
def test_what_cannot_be_is_one_line(
    finished: FinishedRun, ask: object, options: list[str], message: str
) -> None:
    assert callable(ask)
    shown = ask("", finished.folder, *options)

    assert shown.code == 1
    assert shown.err.startswith(f"macpo: {message}")
    assert shown.err.count("\n") == 1


def test_ctrl_c_pressed_again_at_once_does_not_end_the_talk(
    finished: FinishedRun, ask: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one comes while what the first one did is being written."""
    assert callable(ask)
    taken: list[str] = []
    pressed = iter((True, True))

    def take(_: Talk, line: str) -> bool:
        taken.append(line)
        if len(taken) == 1:
            raise KeyboardInterrupt
        return True

    def note(_: TerminalScreen, text: str) -> None:
        if "Ctrl-D ends" in text and taken and next(pressed, False):
            raise KeyboardInterrupt
        print(text, file=sys.stderr)

    monkeypatch.setattr(Talk, "take", take)
    monkeypatch.setattr(TerminalScreen, "note", note)
    shown = ask("one\ntwo\n", finished.folder)

    assert shown.code == 0
    assert taken == ["one\n", "two\n"]
    assert shown.err.endswith("\n/quit or Ctrl-D ends\n")


def test_ctrl_c_on_a_terminal_stops_the_answer_and_not_the_program(finished: FinishedRun) -> None:
    """With an answer that would take long: it is stopped, another is asked for, Ctrl-D ends.

    At the prompt Ctrl-C is pressed until it is heard, as a person does: between showing a prompt
    and waiting for keys CPython's `input()` only takes down a signal (about 1 in 400 of those sent
    as soon as the prompt was there), and goes on waiting.
    """
    ours, theirs = pty.openpty()
    long = ["--max-new-tokens", "450", "--temperature", "100", "--top-p", "1", "--top-k", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "macpo", "chat", finished.folder, "--policy", "weak-a@1", *long],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=python_environment(OMP_NUM_THREADS="1", TERM="dumb"),
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    os.close(theirs)
    seen = ""

    limit = time.monotonic() + 120

    def read_until(text: str, *, press_until_then: bool = False) -> None:
        nonlocal seen
        pressed = -math.inf
        while text not in seen:
            if press_until_then and time.monotonic() > pressed + 3:
                process.send_signal(signal.SIGINT)
                pressed = time.monotonic()
            read_on()
        seen = seen.partition(text)[2]

    def read_on() -> None:
        nonlocal seen
        assert time.monotonic() < limit, repr(seen[-2000:])
        if select.select([ours], [], [], 1)[0]:
            try:
                seen += os.read(ours, 65536).decode(errors="replace")
            except OSError:  # it has ended
                raise AssertionError(seen[-2000:]) from None

    try:
        read_until("> ")
        os.write(ours, b"Tell me more.\n")
        read_until("weak-a@1:\x1b[0m ")
        while not seen.strip():  # an answer that has begun
            read_on()
        process.send_signal(signal.SIGINT)
        read_until("[stopped]")
        read_until("> ")
        read_until("/quit or Ctrl-D ends", press_until_then=True)  # nothing is being answered
        read_until("> ")
        os.write(ours, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
