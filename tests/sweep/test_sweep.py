"""The sweep itself, short: one family of each kind, with the path that each is to take."""

from __future__ import annotations

import re

import pytest

from macpo.adapters import TOWERS, with_adapter
from macpo.config import TuningConfig
from macpo.likelihood import engine
from tests.sweep.checks import check_family
from tests.sweep.families import families, tiny_model
from tests.sweep.page import PAGE


@pytest.mark.parametrize(
    ("family", "scores", "answers"),
    [
        ("llama", "tree", "decode"),
        ("gpt_oss", "windowed tree", "decode"),
        ("deepseek_v3", "tree", "decode"),
        ("gemma3", "windowed tree", "decode"),
        ("qwen3_next", "padded", "generate"),
    ],
)
def test_a_family_of_each_kind_is_right_on_its_path(family: str, scores: str, answers: str) -> None:
    verdict = check_family(family)
    assert verdict.right, verdict.line()
    assert (verdict.scores, verdict.answers) == (scores, answers)


@pytest.mark.parametrize("family", ["gemma3", "phi4_multimodal"])
@pytest.mark.parametrize("targets", ["auto", "all-linear"])
def test_adapters_of_composites_go_over_the_text_decoder_alone(family: str, targets: str) -> None:
    model = tiny_model(family)
    assert any(TOWERS.search(name) for name, _ in model.named_modules())
    tuning = TuningConfig(rank=2, targets=targets)
    adapted = with_adapter(model.requires_grad_(False), tuning, family)
    trains = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trains
    assert not any(TOWERS.search(name) for name in trains)


def test_a_wrong_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = engine.token_logprobs
    monkeypatch.setattr(engine, "token_logprobs", lambda *given: plain(*given) * 1.01)
    verdict = check_family("llama")
    assert verdict.kind == "wrong"
    assert verdict.faults["log-probs"].startswith("off by ")
    assert {"full gradients", "LoRA gradients"} <= verdict.faults.keys()
    assert "answers" not in verdict.faults


def test_the_page_names_every_family_of_transformers() -> None:
    rows = re.findall(r"^\| ([\w-]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [row for row in rows if row != "family"] == families()
