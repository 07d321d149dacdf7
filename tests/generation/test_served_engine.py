"""Watching over a worker that answers: one that dies, hangs or talks nonsense is started anew.

The workers here are real processes that speak the protocol without a model (`fake_worker.py`).
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from macpo.errors import ModelError
from macpo.generation.served.adapters import LARGEST_ID, adapter_of, allowed_rank
from macpo.generation.served.engine import (
    Adapter,
    Drawing,
    Drawn,
    Launch,
    Question,
    SupervisedEngine,
)

FAKE = Path(__file__).with_name("fake_worker.py")
DRAWING = Drawing(temperature=1.0, top_p=0.9, top_k=0, max_tokens=8)
QUESTIONS = {i: Question((1, 5, 6), seed=100 + i, told=i == 0) for i in range(4)}
DEADLINE = 60.0
SHORT_DEADLINE = 4.0  # a fake worker has to start in that time on a busy machine, too


class Watched:
    """An engine over fake workers, and what they left to be read."""

    def __init__(self, home: Path, *acts: str, deadline: float = DEADLINE) -> None:
        self.model = home / "model"
        self.model.mkdir()
        (self.model / "acts").write_text("\n".join(acts))
        (home / "files").mkdir()
        launch = Launch(str(self.model), "float32", 100, 8, 1 << 20, 1, trust_remote_code=False)
        # -S -E: an interpreter without packages starts in no time.
        self.engine = SupervisedEngine(
            launch, home / "files", python(home), deadline, "student", worker=FAKE
        )

    def answers(
        self, adapter: Adapter | None = None, waiting: Callable[[], None] = lambda: None
    ) -> dict[int, Drawn]:
        return dict(self.engine.answer(QUESTIONS, DRAWING, [2], adapter, waiting))

    def asked(self) -> list[list[int]]:
        return [json.loads(line) for line in (self.model / "asked").read_text().splitlines()]

    def pids(self) -> list[int]:
        return [int(pid) for pid in (self.model / "pids").read_text().split()]


def python(home: Path) -> str:
    """Return an interpreter that loads nothing but itself."""
    import sys

    script = home / "python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    script.chmod(0o755)
    return str(script)


def gone(pids: list[int]) -> bool:
    """Tell whether none of the processes is there any more, waiting a little."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.fixture(autouse=True)
def logs_of_failed_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those are kept to be read; here they go with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(*acts: str, **changes: float) -> Watched:
        made.append(Watched(tmp_path, *acts, **changes))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()
        with suppress(FileNotFoundError):
            assert gone(one.pids())


def test_answers_come_with_their_numbers_seeds_and_log_probabilities(
    watched: Callable[..., Watched],
) -> None:
    one = watched("well")

    found = one.answers()

    assert {i: drawn.ids[0] for i, drawn in found.items()} == {i: 100 + i for i in range(4)}
    assert found[0].logprobs == (-0.5, -0.5, -0.5)
    assert [found[i].logprobs for i in (1, 2, 3)] == [None] * 3
    assert one.answers() == found
    assert len(one.pids()) == 2  # one worker with its child served both


def test_a_worker_that_is_killed_is_started_again_for_the_prompts_that_are_left(
    watched: Callable[..., Watched], caplog: pytest.LogCaptureFixture
) -> None:
    one = watched("die 3", "well")

    with caplog.at_level(logging.WARNING, logger="macpo"):
        found = one.answers()

    assert sorted(found) == [0, 1, 2, 3]
    assert one.asked() == [[0, 1, 2, 3], [3]]
    [record] = caplog.records
    said = record.getMessage()
    assert said.startswith(
        "student: vLLM's worker was killed (signal 9), as the system does when memory runs out; it "
        "is started again for the 1 prompts that are left; its output: "
    )
    assert gone(one.pids()[:2])
    assert Path(said.rpartition(": ")[2]).is_file()  # kept to be read


def test_a_worker_that_hangs_is_ended_with_all_that_it_started(
    watched: Callable[..., Watched],
) -> None:
    one = watched("hang 1", "well", deadline=SHORT_DEADLINE)

    started = time.monotonic()
    found = one.answers()

    assert sorted(found) == [0, 1, 2, 3]
    assert one.asked() == [[0, 1, 2, 3], [1, 2, 3]]
    assert time.monotonic() - started >= SHORT_DEADLINE
    assert gone(one.pids()[:2])


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("junk", "wrote what is no message: 'INFO loading weights'"),
        ("fail CUDA out of memory", "failed: CUDA out of memory"),
        ("forget 2", "left 2 of 4 prompts unanswered"),
        ("die 0", "was killed (signal 9)"),
    ],
)
def test_a_second_failure_in_a_stage_is_told_with_its_reason(
    watched: Callable[..., Watched], act: str, reason: str
) -> None:
    again = "forget 0" if act == "forget 2" else act
    one = watched(act, again, "well")

    with pytest.raises(ModelError) as raised:
        one.answers()

    said = str(raised.value)
    assert said.startswith(f"student: vLLM's worker {reason}")
    assert "and it had been started again once" in said
    assert "lower engine.decode_memory_gib" in said
    assert gone(one.pids())
    one.engine.begin_stage()
    assert sorted(one.answers()) == [0, 1, 2, 3]  # the next stage begins anew


def test_a_worker_that_says_that_it_cannot_start_is_not_asked_again(
    watched: Callable[..., Watched],
) -> None:
    one = watched("unable ValueError: 0.01 GiB do not hold one answer", "well")

    with pytest.raises(ModelError) as raised:
        one.answers()

    said, _, log = str(raised.value).rpartition(": ")
    assert said == (
        "student: vLLM does not start, its worker failed: ValueError: 0.01 GiB do not hold one "
        "answer; if that is about memory change engine.decode_memory_gib, else set "
        "generation.backend: local; its output"
    )
    assert Path(log).is_file()
    assert len(one.pids()) == 2
    assert gone(one.pids())


def test_another_dtype_than_the_runs_is_refused(watched: Callable[..., Watched]) -> None:
    one = watched("dtype bfloat16")

    with pytest.raises(ModelError) as raised:
        one.answers()

    assert str(raised.value).startswith(
        "student: vLLM loaded the model in bfloat16, but the run is in float32"
    )
    assert gone(one.pids())


def test_who_stops_waiting_ends_the_worker(watched: Callable[..., Watched]) -> None:
    one = watched("hang 0", "well")

    def interrupt() -> None:
        if (one.model / "asked").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.answers(waiting=interrupt)

    assert one.engine.pid is None
    assert gone(one.pids())
    assert sorted(one.answers()) == [0, 1, 2, 3]


def test_who_takes_no_more_answers_ends_the_worker(watched: Callable[..., Watched]) -> None:
    one = watched("well")

    taken = one.engine.answer(QUESTIONS, DRAWING, [2], None, lambda: None)
    next(taken)
    taken.close()

    assert gone(one.pids())


def test_closing_removes_the_adapters_files_and_leaves_no_log(
    watched: Callable[..., Watched],
) -> None:
    one = watched("well")
    one.answers()
    worker = one.engine._worker
    assert worker is not None

    one.engine.close()

    assert not one.engine.folder.exists()
    assert not worker.log.exists()
    assert gone(one.pids())


def test_names_and_numbers_of_adapters_come_of_their_content(tmp_path: Path) -> None:
    adapters = [adapter_of(f"{n:064x}", tmp_path) for n in (0, 1 << 200, (1 << 256) - 1)]

    assert len({a.name for a in adapters}) == 3
    assert all(0 < a.id <= LARGEST_ID for a in adapters)
    assert all(Path(a.path) == tmp_path / a.name for a in adapters)
    assert adapter_of("ab" * 32, tmp_path) == adapter_of("ab" * 32, tmp_path)


def test_a_number_that_another_adapter_has_is_never_used_in_one_worker(
    watched: Callable[..., Watched],
) -> None:
    one = watched("well", "well")
    first, again = Adapter("a", 7, "/a"), Adapter("b", 7, "/b")

    assert {drawn.ids[1] for drawn in one.answers(first).values()} == {7}
    one.answers(first)
    assert len(one.pids()) == 2
    one.answers(again)

    assert len(one.pids()) == 4
    assert gone(one.pids()[:2])


@pytest.mark.parametrize(("rank", "allowed"), [(1, 8), (8, 8), (9, 16), (257, 320), (513, None)])
def test_ranks_are_rounded_up_to_those_that_vllm_allows(rank: int, allowed: int | None) -> None:
    assert allowed_rank(rank) == allowed
