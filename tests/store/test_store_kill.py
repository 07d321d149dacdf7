"""kill -9 at every single call that changes the disk: the old state or the new, never a mix."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import macpo
from tests.store import kill_server
from tests.store.cases import CASES, check_train, finish, prepare_train, tree


class KillServer:
    """A subprocess that runs scenarios and kills them; see kill_server.py."""

    def __init__(self) -> None:
        source = str(Path(macpo.__file__).parent.parent)
        self.process = subprocess.Popen(
            [sys.executable, kill_server.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": source},
        )

    def run(self, scenario: str, call: int, root: Path) -> str:
        """Run a scenario that is killed at its `call`-th call; return what became of it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{scenario} {call} {root}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer == "finished" or answer.startswith("killed "), answer
        return answer


@pytest.fixture(scope="module")
def server() -> Iterator[KillServer]:
    server = KillServer()
    with server.process:  # at its end the pipes are closed, which ends the process
        yield server


@pytest.fixture(autouse=True)
def _no_real_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # see kill_server.kill_at


@pytest.fixture(autouse=True)
def _cache_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACPO_CACHE", "set by kill_server.build_model")


@pytest.mark.parametrize("scenario", CASES)
def test_kill_at_any_call_leaves_old_or_new_state_and_a_rerun_gives_the_same_bytes(
    scenario: str, server: KillServer, tmp_path: Path
) -> None:
    prepare, check, fewest = CASES[scenario]
    unbroken = tmp_path / "unbroken"
    unbroken.mkdir()
    prepare(unbroken)
    finish(scenario, unbroken)
    expected = tree(unbroken)
    call = 0
    outcome = ""
    while outcome != "finished":
        call += 1
        root = tmp_path / str(call)
        root.mkdir()
        prepare(root)
        outcome = server.run(scenario, call, root)
        copy = tmp_path / "copy"  # looking for checkpoints tidies up, which the rerun must not need
        shutil.copytree(root, copy)
        check(copy)
        shutil.rmtree(copy)
        finish(scenario, root)
        assert tree(root) == expected, f"after a kill at call {call} ({outcome})"
    assert call > fewest


def test_a_stage_killed_again_and_again_ends_with_the_bytes_of_an_unbroken_one(
    server: KillServer, tmp_path: Path
) -> None:
    unbroken = tmp_path / "unbroken"
    prepare_train(unbroken)
    finish("train", unbroken)
    draw = random.Random(0)
    kills = 0
    for attempt in range(10):
        root = tmp_path / str(attempt)
        prepare_train(root)
        while server.run("train", draw.randint(1, 45), root) != "finished":
            kills += 1
            check_train(root)
        assert tree(root) == tree(unbroken)
    assert kills > 20
