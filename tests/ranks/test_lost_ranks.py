"""Whole runs of two ranks: one is killed in the middle of a checkpoint; a launcher starts them.

A run is forked off, as in tests.test_resume, and starts the other rank itself: by its command in
the run that nothing happens to, and elsewhere by forking, which spares it the imports. What a
launcher would start is forked off as well.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import psutil
import pytest
import yaml

from macpo.cli import main
from macpo.config import RunConfig, load_config
from macpo.errors import MacpoError
from macpo.execution import worker
from macpo.execution.following import WORKER
from macpo.ranks import launch
from macpo.runner import run
from macpo.store import Checkpoints, read_journal
from tests.runs import write_config
from tests.test_resume import Quiet, digests


def small_config(folder: Path, **overrides: Any) -> Path:
    """Write the config of a run with few stages."""
    path = write_config(folder)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for unused in ("rounds", "negative_sft", "dpo"):
        del config[unused]
    config["teachers"] = config["teachers"][:1]
    config |= {"method": "naive-sft", "evaluation": {"answers": 0}, **overrides}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = small_config(tmp_path_factory.mktemp("config"))
    return load_config(path, ["engine.processes=2", "engine.checkpoint_steps=1"])


@pytest.fixture(scope="module")
def unbroken(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("unbroken")
    assert run_forked(config, folder, by_command) == "done"
    return digests(folder / "final")


def by_command() -> None:
    """Leave it to the run to start the other rank, as any run does."""


class Forked:
    """A fork of this process at some work, with the part of `subprocess.Popen` that is used."""

    def __init__(self, work: Callable[[], int], out: int, err: int) -> None:
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.setsid()
            os.dup2(out, 1)
            os.dup2(err, 2)
            sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1) for fd in (1, 2))
            status = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, seconds: float | None = None) -> int:
        until = time.monotonic() + (math.inf if seconds is None else seconds)
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("a rank", seconds or 0)
            time.sleep(0.02)
        return status

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def rank_forked(command: Sequence[str], *, stderr: IO[bytes], **_: object) -> Forked:
    """Do as the command of a rank does."""
    assert command[: len(WORKER)] == [*WORKER]
    words = command[len(WORKER) :]
    return Forked(lambda: worker.main(words), stderr.fileno(), stderr.fileno())


def by_fork() -> None:
    """Let the run fork the other rank off."""
    launch.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=rank_forked, DEVNULL=subprocess.DEVNULL, TimeoutExpired=subprocess.TimeoutExpired
    )


def run_forked(config: RunConfig, folder: Path, prepare: Callable[[], None]) -> str:
    """Run in a forked process; return what its error says, or how it ended."""
    said = folder.with_suffix(".said")
    said.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            prepare()
            run(config, folder, Quiet())
            said.write_text("done")
        except MacpoError as error:
            said.write_text(str(error))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else said.read_text()


def inside_checkpoint(number: int, whom: Callable[[], int]) -> Callable[[], None]:
    """Rig rank 0 to kill a process with half of the `number`-th checkpoint written."""

    def prepare() -> None:
        by_fork()
        from macpo.training import loop

        original = loop.save_file
        calls = 0

        def rigged(tensors: dict[str, object], path: Path) -> None:
            nonlocal calls
            calls += 1
            original(tensors, path)
            if calls == number:
                os.kill(whom(), signal.SIGKILL)

        loop.save_file = rigged  # type: ignore[assignment]

    return prepare


def other_rank() -> int:
    [child] = psutil.Process().children()
    return int(child.pid)


def saved_step(folder: Path) -> int | None:
    [stage] = folder.glob("store/.partial/sft-*")
    found = Checkpoints(stage / "checkpoints").latest()
    return None if found is None else found[0]


def finished(folder: Path) -> set[str]:
    events = read_journal(folder / "journal.jsonl")
    return {event["stage"] for event in events if event["event"] == "finished"}


def test_a_rank_killed_inside_a_checkpoint_loses_nothing(
    config: RunConfig, unbroken: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    said = run_forked(config, folder, inside_checkpoint(1, other_rank))
    assert said.startswith("rank 1 of 2 (process ")
    assert said.endswith(
        " was killed by SIGKILL; run the same command to go on from the last checkpoint"
    )
    assert saved_step(folder) == 1  # rank 0 had all of it, and all had come so far

    note = tmp_path / "other"

    def oneself() -> int:
        note.write_text(str(other_rank()))
        return os.getpid()

    assert run_forked(config, folder, inside_checkpoint(1, oneself)) == "killed"
    assert "init/weak-a/positive" in finished(folder)
    wait_until(lambda: not psutil.pid_exists(int(note.read_text())))  # it ends with rank 0

    done = finished(folder)
    assert run_forked(config, folder, by_fork) == "done"
    events = read_journal(folder / "journal.jsonl")
    started = [e["stage"] for e in events[last_invocation(events) :] if e["event"] == "started"]
    assert not done & set(started)
    assert digests(folder / "final") == unbroken


def wait_until(true: Callable[[], bool], seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


def last_invocation(events: list[dict[str, object]]) -> int:
    return max(i for i, event in enumerate(events) if event["event"] == "invoked")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_ranks_of_a_launcher_stop_with_a_checkpoint_whichever_is_asked(tmp_path: Path) -> None:
    """What torchrun sets, by hand; rank 1 alone is told to end."""
    path = small_config(tmp_path, sft={"epochs": 400, "batch_size": 4})
    port = str(free_port())

    def work(rank: int) -> int:
        os.environ.update(
            WORLD_SIZE="2",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        with pytest.raises(SystemExit) as ended:
            main(["run", str(path), "--out", str(tmp_path / "run")])
        return int(ended.value.code or 0)

    said = [(tmp_path / f"out-{rank}", tmp_path / f"err-{rank}") for rank in range(2)]
    ranks = []
    for rank, (out, err) in enumerate(said):
        with out.open("wb") as out_file, err.open("wb") as err_file:
            ranks.append(Forked(partial(work, rank), out_file.fileno(), err_file.fileno()))
    try:
        wait_until(lambda: any((tmp_path / "run").glob("store/.partial/sft-*/checkpoints/step-*")))
        ranks[1].terminate()
        ended = [rank.wait(120) for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
    assert ended == [130, 130]
    assert said[0][1].read_text().splitlines()[-1] == (
        "macpo: stopped; run the same command to go on"
    )
    assert [path.read_text() for path in said[1]] == ["", ""]
    assert (saved_step(tmp_path / "run") or 0) % 20  # made when it was asked to stop
