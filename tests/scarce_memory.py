"""Want of memory for real, in a process whose data the operating system limits; says JSON.

    python -m tests.scarce_memory FOLDER

What the work takes is measured first, as the peak of resident memory, and then three quarters of it
are allowed. So it is torch's own allocator that refuses the pass, wherever in it that happens.
`MALLOC_MMAP_THRESHOLD_` (1 MiB) lets what is freed go back at once, or it would not be missed.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from macpo.agents import Policy
from macpo.config import DPOConfig, EngineConfig, TuningConfig
from macpo.execution.single import Bench, run_stage
from macpo.generation.room import Room
from macpo.memory import telling
from macpo.records import CompletionScore
from macpo.store import Artifact
from macpo.training.stages import TrainDPO
from tests.generation.answers import answer, greedy, random_prompts
from tests.tiny import tiny_folder, tiny_model
from tests.workbench import Workbench, ignore_progress, make_agent, make_pairs

EVERYTHING = 10**6
"""A budget that all of the work fits into."""

WIDTH = 4096
"""Numbers for each token between the halves of a layer: what a pass holds is mostly these."""

HEAD, ANSWERS = 512, 32
"""Numbers of a head, and how many answers grow at once: most of what they hold is keys, values."""

SHARE = 0.75
"""Of what the whole takes: half of it fits, with room to spare."""

Result = TypeVar("Result")


def status(name: str) -> int:
    """Return a line of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def taken(work: Callable[[], Result]) -> tuple[Result, int]:
    """Return what work returns, and the bytes that it took at its peak."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    result = work()
    return result, status("VmHWM") - before


@contextmanager
def limited(room: int) -> Iterator[None]:
    """Let this process have so many bytes of data more, and no more."""
    gc.collect()
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def train(folder: Path, pack_tokens: int, model: Path) -> tuple[Artifact, list[str]]:
    """Train a step on all pairs at once, as a run would; return the artifact, and what was said."""
    bench = Workbench(folder)
    said: list[str] = []
    pairs = make_pairs(40)
    scores = [(r, CompletionScore(-30.0, 9)) for p in pairs for r in (p.chosen, p.rejected)]
    start = Policy(make_agent(model, tuning=TuningConfig(rank=2, dropout=0.1)), "positive")
    written, reference = bench.write_pairs("pairs", pairs), bench.write_scores("scores", scores)
    stage = TrainDPO("dpo", start, written, reference, DPOConfig(batch_size=64), seed=5)
    at_hand = Bench(lambda: bench.pool, EngineConfig(pack_tokens=pack_tokens), note=said.append)
    return run_stage(bench.store, stage, bench.artifacts, at_hand, ignore_progress), said


def budget_of(said: list[str]) -> int:
    """Return the smallest budget that was told."""
    words = said[-1].split(" it goes on with ")[1].split()
    return int(words[0].replace(",", ""))


def try_training(home: Path) -> dict[str, Any]:
    """Train a step whole, where it does not fit whole, and by what then did fit."""
    model = tiny_folder(home / "model", intermediate_size=WIDTH)
    train(home / "warm", 300, model)  # what is loaded and made once is no part of a pass
    _, whole = taken(lambda: train(home / "whole", EVERYTHING, model))
    with limited(int(SHARE * whole)):
        narrowed, said = train(home / "scarce", EVERYTHING, model)
    smaller, quiet = train(home / "smaller", budget_of(said), model)
    return {
        **{"bytes": whole, "said": said, "quiet": quiet},
        **{"narrowed": narrowed.digest, "smaller": smaller.digest},
    }


def try_answering() -> dict[str, Any]:
    """Answer all at once, and again where only some of it fits at once."""
    model = tiny_model(head_dim=HEAD)
    prompts = random_prompts([100 + i for i in range(ANSWERS)])

    def answered(count: int) -> list[list[int]]:
        found = answer(
            model, prompts[:count], greedy(4), memory_gib=8.0, pack_tokens=512, room=Room()
        )
        return [list(completion.token_ids) for completion in found]

    answered(2)
    expected, whole = taken(lambda: answered(ANSWERS))
    said: list[str] = []
    with limited(int(SHARE * whole)), telling(said.append):
        found = answered(ANSWERS)
    return {"bytes": whole, "said": said, "equal": found == expected}


if __name__ == "__main__":
    print(json.dumps({"train": try_training(Path(sys.argv[1])), "answer": try_answering()}))
