"""Compare files for tests, over a base config that loads and need not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from macpo.compare import Design, load_design

BASE: dict[str, Any] = {
    "name": "base",
    "rounds": 2,
    "data": {"source": "pairs.jsonl", "splits": {"teacher": 8, "student": 8, "test": 8}},
    "student": {"model": "org/student"},
    "teachers": [{"name": name, "model": f"org/{name}"} for name in ("weak-a", "weak-b")],
    "dpo": {"beta": 0.2, "gamma": 0.3},
    "negative_sft": {"epochs": 2},
}


def write_compare(folder: Path, base: dict[str, Any] | None = None, **keys: Any) -> Path:
    """Write a base config and a compare file of MACPO and SPIN over two seeds; return its path.

    Args:
        folder: where both files go.
        base: the base config; by default `BASE`.
        **keys: of the compare file, replaced as a whole; None removes one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(yaml.safe_dump(base or BASE, sort_keys=False))
    content: dict[str, Any] = {
        "name": "trial",
        "base": "base.yaml",
        "seeds": [1, 2],
        "methods": {"macpo": "macpo", "spin": "spin"},
        **keys,
    }
    path = folder / "compare.yaml"
    kept = {key: value for key, value in content.items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    return path


def designed(folder: Path, *overrides: str, **keys: Any) -> Design:
    """Write a compare file and lay it out."""
    return load_design(write_compare(folder, **keys), overrides)
