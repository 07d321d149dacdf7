"""What measuring stages leave: numbers by name, and how many things they were measured on.

    {"counts": {"pairs": 40}, "metrics": {"gold_perplexity": 31.22, "preference_accuracy": 0.625}}

The names of metrics are explained in `macpo.metrics`. Where a metric is the mean of something that
each answer or pair has, those values can stand beside it in items.jsonl, with the prompts that they
belong to: intervals and differences between runs are made of them.

    {"prompt_id": "1956e74be3b45b4c", "values": {"preference_accuracy": 1.0}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from macpo.errors import DamagedError, DataError
from macpo.records import read_jsonl, write_jsonl

METRICS_FILE, ITEMS_FILE = "metrics.json", "items.jsonl"


@dataclass(frozen=True, slots=True)
class Measures:
    """Numbers by name; `counts` says on how many things (`pairs`, `answers`) they were measured."""

    metrics: Mapping[str, float]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Item:
    """What was measured of one answer or pair; a prompt may have several.

    `values` are by metric, and the metric is their mean; one that is not defined here is left out.
    """

    prompt_id: str
    values: Mapping[str, float]


def item_means(items: Sequence[Item]) -> dict[str, float]:
    """Return the mean of each value of items that all have the same ones; one item at least."""
    return {name: fmean(item.values[name] for item in items) for name in items[0].values}


def write_measures(
    folder: Path, metrics: Mapping[str, float], items: Sequence[Item] = (), **counts: int
) -> None:
    """Write a stage's measurements into the folder of its output.

    Args:
        folder: where to.
        metrics: numbers by name.
        items: of the metrics that are means over answers or pairs, what they are means of.
        **counts: on how many things they were measured.

    Raises:
        ValueError: a number is not finite: leave out what is not defined.
    """
    if items:
        rows = ({"prompt_id": item.prompt_id, "values": dict(item.values)} for item in items)
        write_jsonl(folder / ITEMS_FILE, rows)
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
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); run the config again") from error
    return Measures(metrics, counts)


def read_items(folder: Path) -> list[Item]:
    """Read what each answer or pair was measured to be; empty where a stage wrote only means.

    Raises:
        DamagedError: it is not what `write_measures` writes.
    """
    path = folder / ITEMS_FILE
    if not path.is_file():
        return []
    try:
        return [
            Item(str(row["prompt_id"]), {str(k): float(v) for k, v in row["values"].items()})
            for row in read_jsonl(path)
        ]
    except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); run the config again") from error
