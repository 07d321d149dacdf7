"""The testbed through the ordinary code: its data, its bases, and the oracle beside the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from macpo.config import DataConfig, ModelConfig, RunConfig
from macpo.data import load_preferences, source_digest
from macpo.errors import ConfigError, DataError, ModelError
from macpo.evaluation.measures import read_items, read_measures
from macpo.models.sources import resolve
from macpo.records import read_jsonl, read_pairs
from macpo.run_status import status
from macpo.runner import run
from macpo.testbed import bases, judge
from macpo.testbed.bases import Recipe
from tests.test_metrics import assert_known
from tests.test_resume import Quiet


@pytest.fixture
def tiny_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A base that is pretrained in a moment, into a cache of its own."""
    monkeypatch.setenv("MACPO_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(32, 1, 64, steps=3, batch=8, learning_rate=1e-3, seed=0)
    monkeypatch.setitem(bases.PRESETS, "tiny", recipe)
    return "testbed:tiny"


def test_data_of_the_testbed_loads_like_any_other() -> None:
    loaded = load_preferences(DataConfig(source="testbed:30"))
    assert (loaded.report.pairs, loaded.report.prompts, loaded.report.bad_rows) == (30, 30, 0)
    more = load_preferences(DataConfig(source="testbed:40"))
    assert more.examples[:30] == loaded.examples
    digests = {source_digest(DataConfig(source=f"testbed:{count}")) for count in (30, 40)}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("testbed:many", {}, "write testbed:NUMBER, for example testbed:1500"),
        ("testbed:0", {}, "the testbed was asked for 0 prompts"),
        ("testbed:30", {"hub_split": "test"}, "data.hub_split: has no effect on the testbed's"),
    ],
)
def test_faulty_testbed_data_is_refused(source: str, options: dict[str, str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        load_preferences(DataConfig(source=source, **options))


def test_base_is_pretrained_once_and_known_before(tiny_base: str) -> None:
    planned = resolve(ModelConfig(source=tiny_base), fetch=False)
    assert not planned.local
    made = resolve(ModelConfig(source=tiny_base))
    weights = Path(made.location) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert made.local
    assert made.digest == planned.digest
    assert resolve(ModelConfig(source=tiny_base)) == made
    assert weights.stat().st_mtime_ns == before


def test_unknown_base_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'strng' is no base of the testbed; did you mean strong"):
        resolve(ModelConfig(source="testbed:strng"))
    with pytest.raises(ModelError, match="revision has no effect on a base of the testbed"):
        resolve(ModelConfig(source="testbed:strong", revision="x"))


def test_run_is_scored_by_the_oracle(tiny_base: str, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "testbed.yaml"
    raw = yaml.safe_load(example.read_text())
    raw |= {
        "rounds": 1,
        "data": {"source": "testbed:24", "splits": {"teacher": 8, "student": 8, "test": 8}},
        "student": {"model": tiny_base},
        "teachers": [{"name": "a", "model": tiny_base}],
        "sampling": {"max_new_tokens": 8},
        "evaluation": {"answers": 8},
    }
    result = run(RunConfig.model_validate(raw), tmp_path / "run", Quiet())
    found = {(row.policy, row.round) for row in result.metrics if row.metric == "oracle_score"}
    assert found == {("student", 0), ("student", 1), ("a", 0), ("a", 1)}
    assert all(0 <= row.value <= 1 for row in result.metrics if row.metric == "oracle_score")
    assert_known(result.metrics)
    stage = result.folder / "stages" / "round-1" / "student" / "oracle"
    assert len(list(read_jsonl(stage / "verdicts.jsonl"))) == 8
    summary = json.loads((stage / "summary.json").read_text())
    assert summary["answers"] == 8
    items = read_items(stage)
    measured = read_measures(stage).metrics
    assert len(items) == 8
    for name in {name for item in items for name in item.values}:
        values = [item.values[name] for item in items if name in item.values]
        assert sum(values) / len(values) == pytest.approx(measured[name]), name
    chosen = {(r.policy, r.round): r.value for r in result.metrics if r.metric == "chosen_score"}
    assert chosen.keys() == {("student", 1), ("a", 1)}
    pairs = read_pairs(result.folder / "stages" / "round-1" / "student" / "pairs")
    expected = sum(judge(p.prompt, p.chosen.text).score for p in pairs) / len(pairs)
    assert chosen["student", 1] == pytest.approx(expected)
    shown = status(result.folder).metrics  # what macpo status shows, the oracle's metrics with it
    assert shown == tuple(row.to_json() for row in result.metrics)
