"""Where the time of a whole run goes, in CPU time of this process (others may use the machine).

    python bench/where_time_goes.py                                      # a small quickstart
    python bench/where_time_goes.py my-run.yaml --set rounds=1 --top 40

Runs a config in a temporary folder under cProfile. Prints what takes most by itself, then the share
of matrix products and attention (torch's operators by name), of reading weights, of imports, and
of all else; then what each kind of stage takes. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import re
import tempfile
import time
from collections import defaultdict
from typing import Any

import torch

from macpo.config import load_config
from macpo.execution.relay import Relay
from macpo.report.console import ConsoleObserver

SMALL = (
    "rounds=1",
    "data.splits={teacher: 12, student: 12, test: 12}",
    "sampling.max_new_tokens=48",
    "evaluation.answers=8",
)
GROUPS = {
    "products": r"_linear_pointwise|torch\._C\._nn\.linear|bmm|matmul|addmm|run_backward|"
    r"scaled_dot_product|of type object.*(mm|linear)",
    "weights": r"_reorder_linear_weight|safetensors|safe_open|load_file|copy_|uniform_|"
    r"get_tensor|\.to'|fsync",
    "imports": r"marshal|posix\.stat|exec_module|get_data|_path_stat|builtins\.compile",
}
"""Functions by name, as cProfile shows them; the first group that fits counts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="example:quickstart")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--top", type=int, default=25)
    args = parser.parse_args()
    from macpo.runner import run

    torch.set_num_threads(1)
    small = SMALL if args.config == "example:quickstart" else ()
    config = load_config(args.config, [*small, *args.overrides])
    profile = cProfile.Profile(time.process_time)
    stages: dict[str, list[float]] = defaultdict(list)

    class Watch(Relay):
        """Notes the CPU time of stages."""

        def stage_started(self, stage: Any, number: int, total: int) -> None:
            self.started = time.process_time()
            super().stage_started(stage, number, total)

        def stage_finished(self, stage: Any, seconds: float, artifact: Any) -> None:
            stages[stage.kind].append(time.process_time() - self.started)
            super().stage_finished(stage, seconds, artifact)

    with tempfile.TemporaryDirectory() as folder, ConsoleObserver() as observer:
        profile.enable()
        run(config, folder, Watch(observer))
        profile.disable()
    found = pstats.Stats(profile)
    found.sort_stats("tottime").print_stats(args.top)
    shares: dict[str, float] = defaultdict(float)
    own = []
    for (file, line, name), (_, _, alone, _, _) in found.stats.items():  # type: ignore[attr-defined]
        shown = f"{file}:{line}({name})"
        group = next((g for g, p in GROUPS.items() if re.search(p, shown)), "rest")
        shares[group] += alone
        own.append((alone, shown if group == "rest" else ""))
    total = sum(shares.values())
    rest = max((alone, shown) for alone, shown in own if shown)
    result = {
        "cpu_seconds": total,
        "shares": {group: seconds / total for group, seconds in shares.items()},
        "largest_other": {"share": rest[0] / total, "what": rest[1]},
        "stages": {
            kind: {"count": len(taken), "seconds": sum(taken)} for kind, taken in stages.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
