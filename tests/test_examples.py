"""Every shipped config loads, wherever it lies below examples/, and can be planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from macpo.compare import load_design
from macpo.config import (
    DPOConfig,
    LimitsConfig,
    NegativeSFTConfig,
    RunConfig,
    SamplingConfig,
    SFTConfig,
    TuningConfig,
    load_config,
)
from macpo.data import load_preferences
from macpo.records import read_jsonl
from macpo.reward import load_reward_config

EXAMPLES = Path(__file__).parent.parent / "examples"
COMPARISONS = sorted((EXAMPLES / "compare").rglob("*.yaml"))
REWARDS = sorted((EXAMPLES / "reward").rglob("*.yaml"))
CONFIGS = sorted(set(EXAMPLES.rglob("*.yaml")) - {*COMPARISONS, *REWARDS})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_example_loads_and_opens_with_its_command(path: Path) -> None:
    load_config(path)
    head = path.read_text(encoding="utf-8").split("\n\n")[0:2]
    assert re.search(rf"macpo run +example:{path.stem}\b", "".join(head))


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_comparison_lays_out_and_opens_with_its_command(path: Path) -> None:
    design = load_design(path)
    assert len(design.cells) == len(design.methods) * len(design.settings) * len(design.seeds)
    head = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert re.search(rf"macpo compare example:compare/{path.stem}\b", head)


@pytest.mark.parametrize("path", REWARDS, ids=lambda path: path.stem)
def test_reward_model_learns_from_what_no_run_takes(path: Path) -> None:
    data = load_reward_config(path).data
    head = path.read_text(encoding="utf-8").partition("\n\n")[0]
    assert f"macpo reward train example:reward/{path.stem}\n" in head
    for config in CONFIGS:
        other = load_config(config).data
        assert (data.source, data.hub_split) != (other.source, other.hub_split)


def test_all_kinds_of_example_ship() -> None:
    names = {path.stem for path in CONFIGS}
    assert {"quickstart", "smollm2-hh-harmless", "paper-hh-helpful", "testbed"} <= names
    assert "ablations" in {path.stem for path in COMPARISONS}


def test_paper_example_says_what_the_defaults_say() -> None:
    """The written-out hyperparameters and the defaults are both the paper's; they cannot part."""
    config = load_config(EXAMPLES / "paper-hh-helpful.yaml")
    assert config.sft == SFTConfig()
    assert config.negative_sft == NegativeSFTConfig()
    assert config.dpo == DPOConfig()
    assert config.sampling == SamplingConfig()
    assert config.limits == LimitsConfig()
    # The default looks for these two layers, which Llama has; the example writes them out.
    assert config.tuning == TuningConfig(targets=("q_proj", "v_proj"))
    assert TuningConfig().targets == ("auto",)
    for option in ("kind", "rank", "alpha", "dropout"):
        assert getattr(config.tuning, option) == getattr(TuningConfig(), option)
    assert config.rounds == RunConfig.model_fields["rounds"].default == 3


def test_paper_hyperparameters_are_those_of_the_authors_scripts() -> None:
    config = load_config(EXAMPLES / "paper-hh-helpful.yaml")
    sft, negative, dpo = config.sft, config.negative_sft, config.dpo
    assert (sft.epochs, sft.learning_rate, sft.batch_size) == (3, 5e-5, 32)
    assert (negative.epochs, negative.learning_rate, negative.batch_size) == (1, 5e-5, 32)
    assert (dpo.epochs, dpo.learning_rate, dpo.batch_size) == (1, 1e-5, 16)
    assert (dpo.beta, dpo.gamma, dpo.reference) == (0.1, 0.2, "previous")
    assert (config.tuning.rank, config.tuning.alpha, config.tuning.targets) == (
        8,
        16,
        ("q_proj", "v_proj"),
    )
    sampling = config.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.95, 0.7, 50)
    assert sampling.max_new_tokens == 512


def test_quickstart_data_is_what_its_readme_promises() -> None:
    config = load_config(EXAMPLES / "quickstart.yaml")
    loaded = load_preferences(config.data)
    assert loaded.report.bad_rows == 0
    assert loaded.report.prompts >= 150
    assert sum(len(e.prompt.messages) > 1 for e in loaded.examples) >= 20
    rows = list(read_jsonl(EXAMPLES / "data" / "quickstart.jsonl"))
    assert len({row["chosen"][0]["content"] for row in rows}) == len(rows)
