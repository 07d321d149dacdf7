"""Faults by the thousand: what is done to a run or given to macpo, and how that ended.

A point is one fault. It is put in place, macpo is asked, and the outcome is one of: `answer`, `one
line` (one of our errors), `traceback`, `hang`, or `silent` (damage that nobody told of, or a result
that is wrong).
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from macpo.config import DataConfig, load_config
from macpo.data.loading import read_preferences
from macpo.models.folders import generation_stops, weight_files
from macpo.models.merging import read_adapter
from macpo.run_directory import RunDir
from macpo.run_status import status
from macpo.store import Checkpoints, Store, read_journal
from tests.faults import compared, parsers, tokens
from tests.faults.odd import ODD, damaged, odd
from tests.faults.outcomes import Fault, Kind, Silent, outcome
from tests.faults.power import cut_runs, cuts


@contextmanager
def replaced(path: Path, content: bytes | None) -> Iterator[None]:
    """Let a file hold something else for a while, or be missing."""
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def artifacts(run: Path, generator: random.Random) -> Iterator[tuple[str, Fault]]:
    """Damage files of finished stages and of final/: `status --verify` says so, every time."""
    store = [p for p in (run / "store").glob("*-*/**/*") if p.is_file()]
    files = sorted([*store, *(p for p in (run / "final").rglob("*") if p.is_file())])

    def ask(path: Path, content: bytes | None) -> None:
        with replaced(path, content):
            report = status(run, thorough=True)
        if report.state == "finished" or not report.faults:
            raise Silent(f"{path.relative_to(run)} was damaged")

    while True:
        path = generator.choice(files)
        content = None if generator.random() < 0.1 else damaged(path.read_bytes(), generator)
        yield path.name, lambda path=path, content=content: ask(path, content)


def found(run: Path, generator: random.Random) -> Iterator[tuple[str, Fault]]:
    """Damage files of artifacts: the store never hands one out that is not as it was committed."""
    folders = sorted(p.parent for p in (run / "store").glob("*-*/manifest.json"))

    def ask(folder: Path, path: Path, content: bytes | None) -> None:
        fields = json.loads((folder / "manifest.json").read_text())
        with replaced(path, content):
            artifact = Store(run / "store").find(fields["kind"], fields["key"])
        if artifact is not None:
            raise Silent(f"{path.relative_to(run)} was damaged")

    while True:
        folder = generator.choice(folders)
        path = generator.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
        content = None if generator.random() < 0.1 else damaged(path.read_bytes(), generator)
        yield path.name, lambda f=folder, p=path, c=content: ask(f, p, c)


def checkpoints(run: Path, generator: random.Random) -> Iterator[tuple[str, Fault]]:
    """Damage the newest checkpoint, or its name: the one before it is taken."""
    while True:
        home = Path(tempfile.mkdtemp(dir=run))
        old, new = (Checkpoints(home / str(step)) for step in (1, 2))
        for step, saved in ((1, old), (2, new)):
            saved.save(
                step, lambda folder, step=step: (folder / "state").write_text(f"{step}" * 99)
            )
        newest = home / "1" / "step-00000002"
        shutil.move(home / "2" / "step-00000002", newest)
        if generator.random() < 0.2:
            newest.rename(newest.with_name(f"step-{generator.randrange(3, 99):08d}"))
        else:
            path = generator.choice(sorted(newest.iterdir()))
            path.write_bytes(damaged(path.read_bytes(), generator))

        def ask(saved: Checkpoints = old, home: Path = home) -> None:
            latest = saved.latest()
            shutil.rmtree(home)
            if latest is None or latest[0] != 1:
                raise Silent(f"{latest} was taken")

        yield "checkpoint", ask


def records(run: Path, generator: random.Random) -> Iterator[tuple[str, Fault]]:
    """Damage what a run writes down of itself, or put odd things there: `status` and reading it."""
    home = RunDir(run)
    names = ("journal.jsonl", "run.json", "plan.json", "metrics.jsonl", "config.resolved.yaml")

    def ask(path: Path, content: bytes) -> None:
        with replaced(path, content):
            read_journal(home.journal_file)
            for read in (home.resolved, home.plan, home.metrics, home.config):
                outcome_of = outcome(read)
                if outcome_of[0] not in ("answer", "one line"):
                    raise RuntimeError(outcome_of[1])
            status(run)

    while True:
        path = run / generator.choice(names)
        content = path.read_bytes()
        if path.suffix == ".yaml" or generator.random() < 0.5:
            content = damaged(content, generator)
        else:
            rows = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
            at = generator.randrange(len(rows))
            rows[at] = json.dumps(odd(json.loads(rows[at]), generator))
            content = ("\n".join(rows) + "\n").encode()
        yield path.name, lambda path=path, content=content: ask(path, content)


def configs(run: Path, generator: random.Random) -> Iterator[tuple[str, Fault]]:
    """Read configs with odd values, damaged text, or odd overrides."""
    text = (run / "config.resolved.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    path = run / "odd.yaml"

    def ask(content: bytes, overrides: list[str]) -> None:
        path.write_bytes(content)
        try:
            load_config(path, overrides)
        finally:
            path.unlink()

    while True:
        way, overrides = generator.randrange(3), []
        if way == 0:
            content = damaged(text.encode(), generator)
        else:
            content = json.dumps(odd(values, generator)).encode()
            if way == 2:
                key = ".".join(generator.choices(("dpo", "data", "teachers", "0", "beta"), k=2))
                overrides = [f"{key}={json.dumps(generator.choice(ODD))}"]
        yield "config", lambda content=content, given=overrides: ask(content, given)


def rows(run: Path, generator: random.Random) -> Iterator[tuple[str, Fault]]:
    """Read data files with odd rows, of several shapes, or damaged bytes."""
    turn = {"role": "user", "content": "Name a prime."}
    answer = {"role": "assistant", "content": "7"}
    shapes: list[dict[str, Any]] = [
        {"prompt": "a?", "chosen": "b", "rejected": "c"},
        {"prompt": [turn], "chosen": [answer], "rejected": [{**answer, "content": "8"}]},
        {"chosen": "\n\nHuman: a?\n\nAssistant: b", "rejected": "\n\nHuman: a?\n\nAssistant: c"},
        {
            **{"prompt": "a?", "response_0": "b", "response_1": "c"},
            **{"better_response_id": 1, "safer_response_id": 0},
        },
        {"instruction": "a?", "input": "", "output": ["b", "c"]},
    ]
    path = run / "odd.jsonl"

    def ask(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read_preferences(DataConfig(source=str(path)))
        finally:
            path.unlink()

    while True:
        shape = generator.choice(shapes)
        lines = [json.dumps({**shape, "id": i}) for i in range(3)]
        lines.append(json.dumps(odd(shape, generator)))
        content = ("\n".join(lines) + "\n").encode()
        if generator.random() < 0.3:
            content = damaged(content, generator)
        yield "rows", lambda content=content: ask(content)


def models(run: Path, generator: random.Random) -> Iterator[tuple[str, Fault]]:
    """Read the small files of models and adapters with odd things in them."""
    adapter = next((run / "final").glob("*/adapter_config.json"))
    known: Mapping[str, tuple[str, Callable[[Path], object]]] = {
        "adapter_config.json": (adapter.read_text(), read_adapter),
        "model.safetensors.index.json": ('{"weight_map": {"a": "b"}}', weight_files),
        "generation_config.json": ('{"eos_token_id": [1, 2]}', generation_stops),
    }

    def ask(name: str, content: bytes) -> None:
        with tempfile.TemporaryDirectory(dir=run) as home:
            Path(home, name).write_bytes(content)
            Path(home, "adapter_model.safetensors").touch()
            known[name][1](Path(home))

    while True:
        name = generator.choice(sorted(known))
        text = known[name][0]
        content = json.dumps(odd(json.loads(text), generator)).encode()
        if generator.random() < 0.4:
            content = damaged(text.encode(), generator)
        yield name, lambda name=name, content=content: ask(name, content)


KINDS: Mapping[str, tuple[Kind, int]] = {
    "artifacts and final/, by status --verify": (artifacts, 5),
    "artifacts, by the store": (found, 20),
    "checkpoints": (checkpoints, 10),
    "journal, run.json, plan.json, metrics, config of a run": (records, 15),
    "configs and overrides": (configs, 20),
    "rows of data": (rows, 20),
    "configs of models and adapters": (models, 10),
    "power cuts, in the store and the cache": (cuts, 10),
    "power cuts, in a whole run": (cut_runs, 1),
    "power cuts, in a comparison": (compared.cuts, 5),
    "YAML in pieces": (parsers.yaml_texts, 20),
    "--set": (parsers.overrides, 10),
    "data as CSV, JSON, parquet, packed": (parsers.tables, 15),
    "headers of weight files": (parsers.weights, 5),
    "replies of a judge that quotes a fake verdict": (parsers.replies, 20),
    "conversations as tokens, nine kinds of tokenizers": (tokens.conversations, 100),
    "conversations as SmolLM2's tokens, where it is cached": (tokens.smollm2, 10),
}
"""What is tried, and how often for every hundred points that are asked for."""
