"""What measuring stages leave: numbers by name, and how many things they were measured on.

    {"counts": {"pairs": 40}, "metrics": {"gold_perplexity": 31.22, "preference_accuracy": 0.625}}

The names of metrics are explained in `macpo.metrics`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from macpo.errors import DamagedError

METRICS_FILE = "metrics.json"


@dataclass(frozen=True, slots=True)
class Measures:
    """Numbers by name; `counts` says on how many things (`pairs`, `answers`) they were measured."""

    metrics: Mapping[str, float]
    counts: Mapping[str, int]


def write_measures(folder: Path, metrics: Mapping[str, float], **counts: int) -> None:
    """Write a stage's measurements into the folder of its output.

    Raises:
        ValueError: a number is not finite: leave out what is not defined.
    """
    value = {"counts": counts, "metrics": dict(metrics)}
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    (folder / METRICS_FILE).write_text(text + "\n", encoding="utf-8")


def read_measures(folder: Path) -> Measures:
    """Read what a measuring stage left in its artifact.

    Raises:
        DamagedError: it is not there, or not what `write_measures` writes.
    """
    path = folder / METRICS_FILE
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        metrics = {str(name): float(number) for name, number in value["metrics"].items()}
        counts = {str(name): int(number) for name, number in value["counts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); run the config again") from error
    return Measures(metrics, counts)
