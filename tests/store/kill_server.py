"""Runs small scenarios of the store in processes that kill -9 themselves at a chosen call.

As a script it is a server: for every line "SCENARIO N ROOT" on stdin it forks a child that runs the
scenario below ROOT and sends itself SIGKILL at its N-th call that changes the disk (a write is half
done by then), and answers one line: "killed FUNCTION" or "finished". Forking from one small process
keeps a sweep over all N within seconds.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from macpo.models.cache import build_once
from macpo.store import Checkpoints, Journal, LeaseClaims, Store, write_text_atomic
from macpo.store.lease import Lease

KEY = "ab" * 32
OTHER_KEY = "cd" * 32
STEPS = 3
LEASE_SECONDS = 3600.0  # no heartbeat of the thread falls into a scenario
FUNCTIONS = (
    "fsync",
    "ftruncate",
    "mkdir",
    "open",
    "rename",
    "replace",
    "rmdir",
    "unlink",
    "write",
)

Mark = Callable[[str], None]


def write_file(path: Path, data: bytes) -> None:
    """Write a file as a stage would, by calls that the killer counts."""
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def state_writer(state: bytes) -> Callable[[Path], None]:
    """What writes a checkpoint that holds `state`."""
    return lambda folder: write_file(folder / "state.bin", state)


def state_after(step: int) -> bytes:
    """What the toy training holds after `step` steps: each step hashes the state before it."""
    state = b"start"
    for _ in range(step):
        state = hashlib.sha256(state).digest() * 8
    return state


def train(root: Path, mark: Mark) -> None:
    """Run a whole stage: find, resume, train with a checkpoint after every step, commit."""
    store = Store(root / "store")
    store.sweep()
    if store.find("sft", KEY) is None:
        train_in(store, mark)


def train_by_lease(root: Path, mark: Mark) -> None:
    """Run it under a lease, as one of several who may: what a dead holder left ends in its time."""
    now = 0.0

    def wait() -> None:
        nonlocal now
        now += LEASE_SECONDS / 4
        assert now < 2 * LEASE_SECONDS, "the lease does not end"

    store = Store(root / "store", LeaseClaims(LEASE_SECONDS, lambda: now))
    store.sweep()
    with store.claim("sft", KEY, wait) as claim:
        assert isinstance(claim, Lease)
        if store.find("sft", KEY) is None:
            train_in(store, mark, beat=lambda: claim._write(claim.path) and None)
    store.sweep()


def train_in(store: Store, mark: Mark, beat: Callable[[], None] = lambda: None) -> None:
    """Train and commit; `beat` is what happens by itself meanwhile."""
    workspace = store.workspace("sft", KEY)
    found = workspace.checkpoints.latest()
    step = 0 if found is None else found[0]
    state = b"start" if found is None else (found[1] / "state.bin").read_bytes()
    while step < STEPS:
        step += 1
        state = hashlib.sha256(state).digest() * 8
        workspace.checkpoints.save(step, state_writer(state))
        mark(f"saved {step}")
        beat()
    write_file(workspace.output / "adapter" / "weights.bin", state)
    write_file(workspace.output / "notes.txt", b"trained")
    workspace.commit({"data": OTHER_KEY}, {"steps": STEPS})
    mark("committed")


def save_over_damaged(root: Path, mark: Mark) -> None:
    """Save a step whose checkpoint is there already, but damaged."""
    checkpoints = Checkpoints(root / "checkpoints")
    checkpoints.save(2, state_writer(state_after(2)))
    mark("saved 2")


def replace_text(root: Path, mark: Mark) -> None:
    """Replace a small file."""
    write_text_atomic(root / "state.json", "new text", durable=True)
    mark("written")


def append_events(root: Path, mark: Mark) -> None:
    """Append the events that are not in the journal yet."""
    from macpo.store import read_journal

    journal = Journal(root / "journal.jsonl", now=lambda: 0.0)
    for number in range(len(read_journal(journal.path)), 4):
        journal.append("step", number=number)
        mark(f"appended {number + 1}")


def discard(root: Path, mark: Mark) -> None:
    """Set an artifact aside."""
    Store(root / "store").discard("sft", OTHER_KEY)
    mark("discarded")


def build_model(root: Path, mark: Mark) -> None:
    """Make a derived model in the cache, unless it is there."""

    def make(folder: Path) -> None:
        write_file(folder / "config.json", b"{}")
        write_file(folder / "weights" / "part.bin", b"weights" * 100)

    os.environ["MACPO_CACHE"] = str(root)
    build_once("model", make)
    mark("built")


SCENARIOS: dict[str, Callable[[Path, Mark], None]] = {
    "train": train,
    "train_by_lease": train_by_lease,
    "save_over_damaged": save_over_damaged,
    "replace_text": replace_text,
    "append_events": append_events,
    "discard": discard,
    "build_model": build_model,
}


def kill_at(call: int, report: Callable[[str], None]) -> None:
    """Let this process kill itself at its `call`-th call that changes the disk."""
    count = 0

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            count += 1
            if count == call:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                report(f"killed {name}")
                os.kill(os.getpid(), signal.SIGKILL)
            # A kill loses nothing that the kernel has, so the sweeps save the time of real fsyncs;
            # that they come in the right order is test_store_atomic's business.
            return None if name == "fsync" else real(*args, **kwargs)

        setattr(os, name, wrapped)

    for name in FUNCTIONS:
        wrap(name)


def run_child(scenario: str, call: int, root: Path, report: int) -> None:
    """Run a scenario to its end or to its kill; never returns."""
    real_write = os.write
    marks = os.open(root / "marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        kill_at(call, lambda text: real_write(report, text.encode()) and None)
        SCENARIOS[scenario](root, lambda text: real_write(marks, text.encode() + b"\n") and None)
        real_write(report, b"finished")
    except BaseException:
        real_write(report, traceback.format_exc().replace("\n", " | ").encode())
    finally:
        os._exit(0)


def serve() -> None:
    """Answer requests until stdin ends."""
    for line in sys.stdin:
        scenario, call, root = line.split()
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            run_child(scenario, int(call), Path(root), write_end)
        os.close(write_end)
        _, status = os.waitpid(child, 0)
        answer = os.read(read_end, 1 << 16).decode()
        os.close(read_end)
        if answer.startswith("killed") and not os.WIFSIGNALED(status):
            answer = f"not killed: status {status}"
        print(answer, flush=True)


if __name__ == "__main__":
    serve()
