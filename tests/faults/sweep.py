"""Faults by the thousand: what is done to a run or given to macpo, and how that ended.

A point is one fault. It is put in place, macpo is asked, and the outcome is one of: `answer`, `one
line` (one of our errors), `traceback`, `hang`, or `silent` (damage that nobody told of).
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from macpo.config import DataConfig, load_config
from macpo.data.loading import read_preferences
from macpo.errors import ConfigError, MacpoError
from macpo.models.folders import generation_stops, weight_files
from macpo.models.merging import read_adapter
from macpo.run_directory import RunDir
from macpo.run_status import status
from macpo.store import Checkpoints, Store, read_journal
from tests.faults.power import cut_runs, cuts

SECONDS = 30.0
"""After so long an answer is a hang; an ordinary one takes some tenths of a second."""

OUTCOMES = ("answer", "one line", "traceback", "hang", "silent")
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 1e308, float("nan"), float("-inf")),
    *("", "x" * 300, "\x1b[2J", "\ud800", "../..", "~nobody-there", [], {}, [[]], {"": None}),
)


class Hang(BaseException):  # no `except Exception` takes it for an error of its own
    """An answer took too long."""


class Silent(Exception):
    """Damage was there, and nothing said so."""


Fault = Callable[[], object]
Kind = Callable[[Path, random.Random], Iterator[tuple[str, Fault]]]
"""Yields faults for ever, each with a name; what it does to the run at the path it takes back."""


def outcome(ask: Fault) -> tuple[str, str]:
    """Ask, and say how that ended and with what words."""
    try:
        with _alarm():
            ask()
    except ConfigError:  # lists every fault of a file, one a line
        return "one line", ""
    except MacpoError as error:
        return ("traceback", str(error)) if "\n" in str(error) else ("one line", "")
    except Hang:
        return "hang", f"took more than {SECONDS:g} s"
    except Silent as error:
        return "silent", str(error)
    except Exception as error:
        return "traceback", f"{type(error).__name__}: {error}"
    return "answer", ""


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def odd(value: Any, generator: random.Random) -> Any:
    """Return a value with something in it replaced by something odd, or left out."""
    if isinstance(value, dict) and value and generator.random() < 0.9:
        key = generator.choice(sorted(value, key=str))
        rest = {k: v for k, v in value.items() if k != key}
        return rest if generator.random() < 0.2 else {**rest, key: odd(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.9:
        at = generator.randrange(len(value))
        return [*value[:at], odd(value[at], generator), *value[at + 1 :]]
    return generator.choice(ODD)


def damaged(content: bytes, generator: random.Random) -> bytes:
    """Return other bytes: a bit flipped, the end cut off, zeros in a page's place, or rubbish."""
    way = generator.randrange(4)
    at = generator.randrange(max(len(content), 1))
    if way == 0 and content:
        return content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :]
    if way == 1 and content:
        return content[:at]
    if way == 2 and content:
        hole = bytes(min(4096, len(content) - at))
        return content[:at] + hole + content[at + len(hole) :] + b"\0"
    return content[:at] + generator.randbytes(9) + content[at:]


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
    "artifacts, by the store": (found, 15),
    "checkpoints": (checkpoints, 10),
    "journal, run.json, plan.json, metrics, config of a run": (records, 15),
    "configs and overrides": (configs, 15),
    "rows of data": (rows, 19),
    "configs of models and adapters": (models, 10),
    "power cuts, in the store and the cache": (cuts, 10),
    "power cuts, in a whole run": (cut_runs, 1),
}
"""What is tried, with the share of all points in per cent."""
