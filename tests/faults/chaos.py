"""`make chaos`: a run is killed with kill -9 every few seconds, and started again, for ten minutes.

Seconds between kills are those that the run was at work, its own CPU time, so that a busy machine
does not kill it before it has begun.

python -m tests.faults.chaos                                    # a tiny run again and again
python -m tests.faults.chaos --minutes 2 --every 3 --seed 1     # shorter
python -m tests.faults.chaos --config examples/quickstart.yaml  # another one

Each attempt is a fork of this process, so that it works instead of importing torch. What comes out
is compared with an undisturbed run. Ends with a line of JSON: `twice` is the share of units of work
(optimizer steps, answers, scored prompts) that were done and had to be done again, `cpu` the CPU
time of all attempts against that of the undisturbed run: it counts loading models again, too.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from macpo.answering import SHARD, Respond
from macpo.config import RunConfig, load_config
from macpo.runner import run
from macpo.stage import Stage
from macpo.store import read_journal
from macpo.training.stages import TrainingStage
from tests.runs import write_config
from tests.test_resume import Quiet, digests


class Counting(Quiet):
    """Writes every unit of work that is done into a file, which outlives the process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._before = 0

    def stage_started(self, stage: Stage, number: int, total: int) -> None:
        super().stage_started(stage, number, total)
        self._before = -1

    def stage_progress(self, stage: Stage, done: int, total: int, **fields: float) -> None:
        if self._before < 0:
            self._before = where_it_began(stage, done)
        os.write(self._file, f"{stage.key[:16]} {self._before} {done}\n".encode())
        self._before = done


def where_it_began(stage: Stage, done: int) -> int:
    """Return how many units were done before an attempt, by its first report."""
    if isinstance(stage, TrainingStage):
        return done - 1  # of a checkpoint
    return done // SHARD * SHARD if isinstance(stage, Respond) else 0


@dataclass
class Tally:
    """What the attempts did."""

    kills: int = 0
    finished: int = 0
    cpu: float = 0.0
    alone_cpu: float = 0.0
    units: int = 0
    needed: int = 0
    stages_twice: int = 0
    wrong: list[str] = field(default_factory=list)


def attempt(
    config: RunConfig, folder: Path, units: Path, patience: float | None
) -> tuple[bool, float]:
    """Run in a fork that is killed after `patience` seconds of CPU time.

    Returns:
        Whether it came to its end, and the CPU time that it took.

    Raises:
        SystemExit: the run failed by itself.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(config, folder, Counting(units))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    while True:
        found, status, used = os.wait4(child, os.WNOHANG)
        if found:
            break
        if patience is not None and cpu_seconds(child) > patience:
            os.kill(child, signal.SIGKILL)
            patience = None
        time.sleep(0.01)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"the run in {folder} failed by itself")
    return not os.WIFSIGNALED(status), used.ru_utime + used.ru_stime


def cpu_seconds(process: int) -> float:
    """Return how long a process has worked, with its threads; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def done_in(units: Path) -> tuple[int, int]:
    """Return how many units of work were done, and how many different ones."""
    total, different = 0, set()
    for line in units.read_text().splitlines():
        stage, before, done = line.split()
        total += int(done) - int(before)
        different |= {(stage, number) for number in range(int(before), int(done))}
    return total, len(different)


def disturb(
    config: RunConfig, home: Path, seconds: float, every: float, generator: random.Random
) -> Tally:
    """Kill runs until time is up, let the last one finish, and compare what they hand out."""
    tally = Tally()
    _, tally.alone_cpu = attempt(config, home / "alone", home / "alone.units", None)
    expected = digests(home / "alone" / "final")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        folder, units = home / f"run-{tally.finished}", home / f"units-{tally.finished}"
        ended = False
        while not ended:
            over = time.monotonic() > until
            patience = None if over else generator.uniform(0, 2 * every)
            ended, cpu = attempt(config, folder, units, patience)
            tally.cpu += cpu
            tally.kills += not ended
        tally.finished += 1
        total, different = done_in(units)
        tally.units += total
        tally.needed += different
        names = [
            e["stage"] for e in read_journal(folder / "journal.jsonl") if e["event"] == "finished"
        ]
        tally.stages_twice += len(names) - len(set(names))
        if digests(folder / "final") != expected:
            tally.wrong.append(folder.name)
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    """Disturb and report; return 1 if anything came out otherwise."""
    asked = _parser().parse_args(arguments)
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(1)  # which makes forking safe
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        path = asked.config or write_config(Path(home), rounds=asked.rounds)
        config = load_config(path, ["engine.checkpoint_steps=1"] if asked.config is None else [])
        tally = disturb(
            config, Path(home), 60 * asked.minutes, asked.every, random.Random(asked.seed)
        )
    summary = {
        "kills": tally.kills,
        "runs": tally.finished,
        "other_adapters": len(tally.wrong),
        "stages_run_twice": tally.stages_twice,
        "units": tally.needed,
        "twice": round(tally.units / max(1, tally.needed) - 1, 4),
        "cpu": round(tally.cpu / (tally.alone_cpu * max(1, tally.finished)), 2),
        "every": asked.every,
        "seconds": round(time.monotonic() - started),
        "memory_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    print(json.dumps(summary))
    return 1 if tally.wrong or tally.stages_twice else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="how long to go on killing")
    parser.add_argument("--every", type=float, default=2, help="between kills, on average")
    parser.add_argument("--rounds", type=int, default=2, help="of the tiny run")
    parser.add_argument("--config", type=Path, help="a run of your own instead of the tiny one")
    parser.add_argument("--seed", type=int, default=0, help="draws other moments")
    return parser


if __name__ == "__main__":
    sys.exit(main())
