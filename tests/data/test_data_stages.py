"""The data stage: what it divides, and its account of what it left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from macpo.config import DataConfig, LimitsConfig, SplitsConfig
from macpo.data.stages import SplitData, content_digest
from macpo.errors import DataError
from macpo.execution.single import look
from macpo.records import read_examples, splits_in
from macpo.store import Artifact
from tests.workbench import Workbench, make_agent

QUESTIONS = ("Name a prime.", "Name a fruit.", "Say hello.", "word " * 400)
SPLIT = SplitsConfig(teacher=1, student=1, test=1)


def data_stage(folder: Path, name: str) -> SplitData:
    """Return the stage over a file with a broken row, a row twice, and one long prompt."""
    rows = [{"prompt": q, "chosen": "Yes", "rejected": "No"} for q in QUESTIONS]
    lines = [json.dumps(row) for row in [*rows, rows[0]]]
    (folder / name).write_text("\n".join([*lines, "{"]), encoding="utf-8")
    config = DataConfig(source=str(folder / name), splits=SPLIT, max_bad_rows=1)
    agent = make_agent(limits=LimitsConfig(prompt_tokens=64))
    return SplitData("data", config, content_digest(config, fetch=True), 0, (agent,))


def test_report_says_which_rows_were_left_out_and_why(tmp_path: Path) -> None:
    made = Workbench(tmp_path).run(data_stage(tmp_path, "pairs.jsonl"))
    report = json.loads((made.path / "report.json").read_text(encoding="utf-8"))
    assert (report["format"], report["rows"], report["pairs"]) == ("trl", 6, 4)
    assert report["duplicates"] == [5]
    [skipped] = report["skipped"]
    assert (skipped["reason"], skipped["numbers"], skipped["excerpt"]) == ("not JSON", [6], "{")
    assert report["prompts_too_long"] == 1
    used = {
        e.prompt.messages[0].content
        for s in splits_in(made.path)
        for e in read_examples(made.path, s)
    }
    assert used == set(QUESTIONS[:3])


@pytest.mark.parametrize("limit", [0, 0.1])
def test_what_was_taken_is_refused_once_fewer_bad_rows_are_allowed(
    tmp_path: Path, limit: float
) -> None:
    stage = data_stage(tmp_path, "pairs.jsonl")
    bench = Workbench(tmp_path / "bench")
    made = bench.run(stage)

    def found(limit: float) -> Artifact | None:
        data = stage.data.model_copy(update={"max_bad_rows": limit})
        return look(bench.store, replace(stage, data=data), {})[0]

    for enough in (1, 0.2, 100):
        kept = found(enough)
        assert kept is not None
        assert kept.digest == made.digest
    message = rf"1 of 6 rows are bad, more than data.max_bad_rows {limit} allows; mend them"
    with pytest.raises(DataError, match=message):
        found(limit)


def test_artifact_does_not_tell_where_the_data_lay(tmp_path: Path) -> None:
    """Equal keys, equal bytes: runs that share a store may have the file in different places."""
    here, there = data_stage(tmp_path, "here.jsonl"), data_stage(tmp_path, "there.jsonl")
    assert here.key == there.key
    made = Workbench(tmp_path / "one").run(here)
    assert Workbench(tmp_path / "other").run(there).digest == made.digest
