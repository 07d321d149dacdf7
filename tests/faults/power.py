"""Power cuts: the states in which a disk may be found afterwards, and what macpo makes of each.

A point is a moment of something that writes, and a choice of what was lost (`tests.faults.disk`).
The disk is put into that state and the same thing is done again. It must end in the bytes of the
unbroken one: what was promised before the cut is there, what was damaged is made again, and nothing
has to be done by hand, so that an error of ours is a failure here, too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from macpo.config import RunConfig, load_config
from macpo.errors import MacpoError
from macpo.run_status import status
from macpo.runner import run
from macpo.store import read_journal
from tests.faults.disk import EXTREMES, Choice, Draw, Moment, recording, unsynced, write_out
from tests.runs import write_config
from tests.store.cases import CASES, finish, tree
from tests.store.kill_server import SCENARIOS
from tests.test_resume import Quiet, digests

RUN_SECONDS = 900.0
"""After so long a whole run hangs; an ordinary one takes 10 s of CPU time."""


@contextlib.contextmanager
def environment_kept() -> Iterator[None]:
    """Put the environment back as it was: some of what is recorded sets its own cache."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


class WentWrong(Exception):
    """After a power cut macpo refused, or went on to something else than without it."""


@dataclass(frozen=True)
class Scenario:
    """One of `tests.store.kill_server`, recorded."""

    name: str
    home: Path

    @property
    def root(self) -> Path:
        """Where it happens: always there, since some of what is written names its own place."""
        return self.home / self.name / "disk"

    @cached_property
    def recorded(self) -> tuple[list[Moment], dict[str, bytes | None]]:
        """Its moments, and the tree that it ends in."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        with unsynced():
            CASES[self.name][0](self.root)
        with environment_kept(), recording(self.root) as recorder:
            SCENARIOS[self.name](self.root, recorder.mark)
        return recorder.moments, tree(self.root)

    def ask(self, moment: Moment, choice: Choice) -> None:
        """Cut the power, and do it again.

        Raises:
            WentWrong: what was promised is not there, or it ends in something else.
        """
        expected = self.recorded[1]
        write_out(moment, self.root, choice)
        (self.root / "marks").write_text("".join(f"{mark}\n" for mark in moment.marks))
        copy = self.home / self.name / "copy"  # looking for checkpoints tidies up
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.root, copy, symlinks=True)
        try:
            with unsynced():
                CASES[self.name][1](copy)
                finish(self.name, self.root)
        except AssertionError as error:
            raise WentWrong(f"a promise was broken: {error}") from error
        except MacpoError as error:
            raise WentWrong(f"refused: {error}") from error
        if (found := tree(self.root)) != expected:
            names = sorted(n for n in found.keys() | expected if found.get(n) != expected.get(n))
            raise WentWrong(f"another end: {', '.join(names)}")


class Recorded:
    """A whole small run with a derived model in the cache, recorded.

    Args:
        home: a folder for it.
        rounds: of the run.
    """

    def __init__(self, home: Path, rounds: int = 1) -> None:
        self.home = home
        self.disk = home / "disk"
        self.folder = self.disk / "run"
        self.config = self._config(rounds)
        self.disk.mkdir()
        with recording(self.disk) as recorder:
            self._run(Quiet())
        self.moments = recorder.moments
        self.final, self.store = self._outcome()

    def _config(self, rounds: int) -> RunConfig:
        path = write_config(self.home)
        weak = {"name": "weak", "model": {"source": "models/student", "layers": "0,2"}}
        values = {**yaml.safe_load(path.read_text()), "teachers": [weak], "rounds": rounds}
        path.write_text(yaml.safe_dump(values))
        return load_config(path, ["engine.checkpoint_steps=1", "data.splits.teacher=4"])

    def _run(self, observer: Quiet) -> None:
        with environment_kept():
            os.environ["MACPO_CACHE"] = str(self.disk / "cache")
            run(self.config, self.folder, observer)

    def _outcome(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Return the checksums of what is handed out, and of the artifacts."""
        store = self.folder / "store"
        return digests(self.folder / "final"), {
            f"{artifact.name}/{name}": checksum
            for artifact in sorted(store.glob("*-*"))
            for name, checksum in digests(artifact).items()
        }

    def ask(self, moment: Moment, choice: Choice) -> None:
        """Cut the power, and run again.

        Raises:
            WentWrong: it refuses, ends in something else, or does again what was finished.
        """
        signal.setitimer(signal.ITIMER_REAL, RUN_SECONDS)  # of `outcome`, which is for an answer
        write_out(moment, self.disk, choice)
        done = {
            event["stage"]
            for event in read_journal(self.folder / "journal.jsonl")
            if event["event"] == "finished"
        }
        observer = Quiet()
        try:
            with unsynced():
                status(self.folder, thorough=True)
                self._run(observer)
        except MacpoError as error:
            raise WentWrong(f"refused: {error}") from error
        if twice := sorted(done & set(observer.ran)):
            raise WentWrong(f"run twice: {', '.join(twice)}: {observer.notes}")
        for found, expected in zip(self._outcome(), (self.final, self.store), strict=True):
            if found != expected:
                names = sorted(
                    n for n in found.keys() | expected if found.get(n) != expected.get(n)
                )
                raise WentWrong(f"another end: {', '.join(names)}")
        report = status(self.folder, thorough=True)
        if report.state != "finished" or report.faults:
            raise WentWrong(f"status says {report.state}: {report.faults}")
        left = [*self.folder.glob("final/.*"), *self.folder.glob("store/.partial/*")]
        if left:
            raise WentWrong(f"left behind: {', '.join(path.name for path in left)}")


def cuts(run: Path, generator: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Cut the power at every moment of each scenario of the store: first extremes, then by draw."""
    with tempfile.TemporaryDirectory() as home:
        scenarios = [Scenario(name, Path(home)) for name in CASES]
        points = [(s, m) for s in scenarios for m in s.recorded[0]]
        extremes = [(s, m, choice) for s, m in points for choice in EXTREMES]
        generator.shuffle(extremes)
        for scenario, moment, choice in extremes:
            yield named(scenario.name, moment), put_back(scenario.ask, moment, choice)
        while True:
            scenario, moment = generator.choice(points)
            drawn = Draw(generator.random())
            yield named(scenario.name, moment), put_back(scenario.ask, moment, drawn)


def cut_runs(run: Path, generator: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """Cut the power while a whole run goes on; half of the points are in its end, publishing."""
    recorded = recorded_run()
    count = len(recorded.moments)
    while True:
        late = generator.random() < 0.5
        moment = recorded.moments[generator.randrange(count * 3 // 4 if late else 0, count)]
        choice = generator.choice((*EXTREMES, *(Draw(generator.random()) for _ in EXTREMES)))
        yield named("run", moment), put_back(recorded.ask, moment, choice)


@functools.cache
def recorded_run() -> Recorded:
    """Return a run that is recorded once in a process."""
    # Kept alive by being in the list, removed when the interpreter ends.
    HOMES.append(tempfile.TemporaryDirectory(prefix="macpo-power-"))
    return Recorded(Path(HOMES[-1].name))


HOMES: list[tempfile.TemporaryDirectory[str]] = []


def named(what: str, moment: Moment) -> str:
    """Name a point for the report."""
    return f"{what}, after {moment.call}, {len(moment.nodes)} inodes"


def put_back(
    ask: Callable[[Moment, Choice], None], moment: Moment, choice: Choice
) -> Callable[[], None]:
    """Return what asks, and leaves the environment as it was."""

    def asking() -> None:
        with environment_kept():
            ask(moment, choice)

    return asking
