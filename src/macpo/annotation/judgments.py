"""The file that keeps what people judged: SQLite, one row for each judgment.

RUN/annotations/student@3-vs-student@0-1f2e3d4c.sqlite

It holds the pairs as well, so that it says all there is to know of itself. A judgment is on the
disk before the page is told so (WAL, synchronous FULL): a process killed at any moment loses none
of which anybody was told. Several processes may have the file open.
"""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from macpo.annotation.pairs import AnswerPair, Pairing
from macpo.errors import ConfigError, StoreError
from macpo.run_directory import RunDir
from macpo.seeds import stable_seed

SUFFIX = ".sqlite"
FORMAT = 1
MARK = 0x4D41434F  # the application id: says whose SQLite file it is
WAIT_SECONDS = 10.0
LONGEST_NAME = 60

Verdict = Literal["one", "other", "tie"]
Position = Literal["one", "other"]

_TABLES = (
    "CREATE TABLE sides (name TEXT PRIMARY KEY, label TEXT NOT NULL)",
    "CREATE TABLE pairs (id TEXT PRIMARY KEY, place INTEGER NOT NULL, pair TEXT NOT NULL)",
    """CREATE TABLE judgments (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        pair TEXT NOT NULL REFERENCES pairs(id),
        annotator TEXT NOT NULL,
        verdict TEXT NOT NULL CHECK (verdict IN ('one', 'other', 'tie')),
        left_side TEXT NOT NULL CHECK (left_side IN ('one', 'other')),
        seconds REAL,
        time TEXT NOT NULL,
        UNIQUE (pair, annotator)
    )""",
)


@dataclass(frozen=True, slots=True)
class Judgment:
    """What one person said of one pair.

    Attributes:
        pair: its id.
        prompt_id: of the pair's prompt.
        annotator: who.
        verdict: which side is better, or `tie`.
        left: which side stood on the left.
        seconds: that the pair was looked at; None where nobody measured.
        time: UTC, ISO 8601.
    """

    pair: str
    prompt_id: str
    annotator: str
    verdict: Verdict
    left: Position
    seconds: float | None
    time: str


def annotation_files(run: RunDir) -> list[Path]:
    """List the files with judgments of a run, by name."""
    return sorted(run.annotations.glob(f"*{SUFFIX}"))


def file_for(run: RunDir, pairing: Pairing) -> Path:
    """Return where the judgments of a pairing are kept: other answers have another file.

    The same answers have the same file, also when the other run's folder has got another name.
    """
    known = sorted(run.annotations.glob(f"*-{pairing.key[:8]}{SUFFIX}"))
    if known:
        return known[0]
    name = f"{_in_name(pairing.one)}-vs-{_in_name(pairing.other)}-{pairing.key[:8]}"
    return run.annotations / f"{name}{SUFFIX}"


def annotator_name(text: object) -> str:
    """Return a person's name in one spelling.

    Raises:
        ConfigError: it is no name.
    """
    name = " ".join(unicodedata.normalize("NFC", text).split()) if isinstance(text, str) else ""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"a name is 1 to {LONGEST_NAME} letters, digits, signs and blanks")
    return name


def left_side(pair: str, annotator: str) -> Position:
    """Draw which side a person sees on the left: the same whenever the pair is shown again."""
    return "one" if stable_seed("annotation side", pair, annotator) % 2 else "other"


class JudgmentFile:
    """An open file of judgments.

    Attributes:
        path: where it is.
        one: the label of the first side.
        other: of the second.
        pairs: to be judged, in the order in which they are shown.
    """

    def __init__(self, path: Path) -> None:
        """Open a file that is there.

        Raises:
            StoreError: it is not, or is no such file.
        """
        if not path.is_file():
            raise StoreError(f"{path}: no judgments here; macpo annotate RUN makes them")
        self.path = path
        with self._told():
            # The server's requests come one at a time, but not always from one thread.
            self._db = sqlite3.connect(
                path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            marks = [self._value(f"PRAGMA {name}") for name in ("application_id", "user_version")]
            if marks != [MARK, FORMAT]:
                self._db.close()
                raise StoreError(
                    f"{path}: not a file of judgments that this version of macpo reads; move it "
                    "away"
                )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            labels = dict(self._db.execute("SELECT name, label FROM sides"))
            rows = self._db.execute("SELECT pair FROM pairs ORDER BY place").fetchall()
        self.one, self.other = str(labels["one"]), str(labels["other"])
        self.pairs: Sequence[AnswerPair] = [AnswerPair.from_json(json.loads(p)) for (p,) in rows]
        self._by_id = {pair.id: pair for pair in self.pairs}

    @classmethod
    def open(cls, path: Path, pairing: Pairing) -> JudgmentFile:
        """Open the file of a pairing, made if it is not there.

        Raises:
            StoreError: it cannot be written or read.
        """
        _create(path, pairing)
        return cls(path)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def judgments(self) -> list[Judgment]:
        """Return all judgments, oldest first."""
        query = (
            "SELECT pair, annotator, verdict, left_side, seconds, time FROM judgments "
            "ORDER BY number"
        )
        with self._told():
            rows = self._db.execute(query).fetchall()
        return [Judgment(row[0], self._by_id[row[0]].prompt.id, *row[1:]) for row in rows]

    def annotators(self) -> dict[str, int]:
        """Return who has judged, and how many pairs, in the order in which they began."""
        query = "SELECT annotator, COUNT(*) FROM judgments GROUP BY annotator ORDER BY MIN(number)"
        with self._told():
            return dict(self._db.execute(query).fetchall())

    def next_pair(self, annotator: str) -> AnswerPair | None:
        """Return the first pair that a person has not judged; None when none is left."""
        query = "SELECT pair FROM judgments WHERE annotator = ?"
        with self._told():
            judged = {pair for (pair,) in self._db.execute(query, (annotator,))}
        return next((pair for pair in self.pairs if pair.id not in judged), None)

    def judge(self, pair: str, annotator: str, verdict: Verdict, seconds: float | None) -> bool:
        """Keep a judgment; it is on the disk when this returns.

        Returns:
            False if this person had judged the pair before, in another tab: that one stands.

        Raises:
            ConfigError: there is no such pair.
        """
        if pair not in self._by_id:
            raise ConfigError("there is no such pair; load the page again")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        row = (pair, annotator, verdict, left_side(pair, annotator), seconds, now)
        with self._told():
            cursor = self._db.execute(
                "INSERT INTO judgments (pair, annotator, verdict, left_side, seconds, time) "
                "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (pair, annotator) DO NOTHING",
                row,
            )
        return cursor.rowcount == 1

    def undo(self, annotator: str) -> AnswerPair | None:
        """Take a person's latest judgment back and return its pair; None when there is none."""
        query = (
            "DELETE FROM judgments WHERE number = "
            "(SELECT MAX(number) FROM judgments WHERE annotator = ?) RETURNING pair"
        )
        with self._told():
            rows = self._db.execute(query, (annotator,)).fetchall()
        return self._by_id[rows[0][0]] if rows else None

    def _value(self, query: str) -> object:
        return self._db.execute(query).fetchone()[0]

    @contextmanager
    def _told(self) -> Iterator[None]:
        with _told(self.path):
            yield


def _create(path: Path, pairing: Pairing) -> None:
    """Write the pairs into a new file, in one transaction; one that is there is left as it is."""
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
        try:
            db.execute("BEGIN EXCLUSIVE")
            if db.execute("PRAGMA schema_version").fetchone() == (0,):
                for statement in _TABLES:
                    db.execute(statement)
                sides = (("one", pairing.one), ("other", pairing.other))
                db.executemany("INSERT INTO sides VALUES (?, ?)", sides)
                rows = [(p.id, i, json.dumps(p.to_json())) for i, p in enumerate(pairing.pairs)]
                db.executemany("INSERT INTO pairs VALUES (?, ?, ?)", rows)
                db.execute(f"PRAGMA application_id = {MARK}")
                db.execute(f"PRAGMA user_version = {FORMAT}")
            db.execute("COMMIT")
        finally:
            db.close()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what SQLite and the disk say into one line."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{path}: cannot be used ({error}); check the disk and who may write there"
        ) from error


def _in_name(label: str) -> str:
    """Return a side's label as part of a file's name."""
    return "".join(c if c.isalnum() or c in "@._-" else "-" for c in label)[:60]
