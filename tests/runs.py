"""Tiny runs through the command line: a config with its models and data, made in a moment.

config = write_config(tmp_path)                       # 2 teachers, 2 rounds, 24 pairs
result = run_cli(["run", config, "--out", tmp_path / "run"])
process = start_cli(["run", config, "--out", tmp_path / "run"])     # in a process to be killed
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.tiny import tiny_folder

SOURCES = Path(__file__).resolve().parents[1] / "src"
THINGS = ("bread", "a dog", "a prime number", "an answer", "a student", "water")
ASKED = ("How do I make {}?", "Name {}.", "Is {} brown?", "Tell me more about {}, please.")


@dataclass(frozen=True)
class CliResult:
    """How a command ended: its exit status and what it wrote."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class FinishedRun:
    """A config, the directory of its run, and what running it said."""

    config: Path
    folder: Path
    result: CliResult


def write_config(folder: Path, **overrides: Any) -> Path:
    """Write tiny models, a data file of 24 pairs and a config; return the config's path.

    The run takes a few seconds. Models and data that are there already are kept.

    Args:
        folder: where `models/`, `pairs.jsonl` and `tiny.yaml` go.
        **overrides: top-level keys of the config, replaced as a whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = {"student": ("qwen3", 3), "weak-a": ("llama", 1), "weak-b": ("mistral", 2)}
    for seed, (name, (architecture, layers)) in enumerate(models.items()):
        if not (folder / "models" / name).exists():
            tiny_folder(folder / "models" / name, architecture, layers=layers, seed=seed)
    if not (folder / "pairs.jsonl").exists():
        write_pairs(folder / "pairs.jsonl")
    config: dict[str, Any] = {
        "name": "tiny",
        "rounds": 2,
        "dtype": "float32",
        "device": "cpu",
        "data": {"source": "pairs.jsonl", "splits": {"teacher": 8, "student": 8, "test": 8}},
        "student": {"model": "models/student"},
        "teachers": [{"name": name, "model": f"models/{name}"} for name in ("weak-a", "weak-b")],
        "sft": {"epochs": 1, "learning_rate": 0.01, "batch_size": 4},
        "negative_sft": {"epochs": 1, "learning_rate": 0.01, "batch_size": 4},
        "dpo": {"epochs": 1, "learning_rate": 0.001, "batch_size": 4},
        "sampling": {"max_new_tokens": 8},
        "limits": {"prompt_tokens": 128, "response_tokens": 64},
        "evaluation": {"answers": 4},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**config, **overrides}, sort_keys=False), encoding="utf-8")
    return path


def write_pairs(path: Path) -> None:
    """Write 24 pairs on 24 prompts, answers of several lengths, every fourth with two turns."""
    rows = []
    for i, (asked, thing) in enumerate((a, t) for a in ASKED for t in THINGS):
        prompt = [{"role": "user", "content": asked.format(thing)}]
        if i % 4 == 3:
            earlier = [("user", "Hello!"), ("assistant", "Hello, what can I do?")]
            prompt = [*({"role": r, "content": c} for r, c in earlier), *prompt]
        chosen = f"{thing.capitalize()}: " + "mix flour and water, " * (1 + i % 3) + "and bake it."
        rejected = f"I cannot help with {thing}" + " at all" * (i % 5) + "."
        sides = {"chosen": chosen, "rejected": rejected}
        answers = {k: [{"role": "assistant", "content": v}] for k, v in sides.items()}
        rows.append({"prompt": prompt, **answers})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def run_cli(args: Sequence[str | Path]) -> CliResult:
    """Run `macpo` with these arguments in this process and return how it ended."""
    from macpo.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return CliResult(code, out.getvalue(), err.getvalue())


def hear_interrupts() -> None:
    """Let a child process die of Ctrl-C again, which what is started in the background ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_cli(args: Sequence[str | Path], **environment: str) -> subprocess.Popen[str]:
    """Start `macpo` with these arguments in a process of its own, its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "macpo", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
        text=True,
        env=python_environment(OMP_NUM_THREADS="1", **environment),
    )


def python_environment(**changes: str) -> dict[str, str]:
    """Return the environment of a process that is to import this source tree."""
    return {**os.environ, "PYTHONPATH": str(SOURCES), **changes}


def journal_of(run: Path) -> list[dict[str, Any]]:
    """Return the events of a run's journal."""
    from macpo.store import read_journal

    return read_journal(run / "journal.jsonl")


def finished_stages(run: Path, since: int = 0) -> list[str]:
    """Return the names of the stages that ran to their end, from journal event `since` on."""
    return [e["stage"] for e in journal_of(run)[since:] if e["event"] == "finished"]
