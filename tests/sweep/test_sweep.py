"""The sweep itself, short: one family of each kind, with the path that each is to take."""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from macpo.adapters import TOWERS, with_adapter
from macpo.config import TuningConfig
from macpo.likelihood import engine
from tests.sweep.before import BEFORE
from tests.sweep.checks import Verdict, check_family, is_noncausal
from tests.sweep.families import NOT_ALONE, families, tiny_config, tiny_model
from tests.sweep.page import PAGE, count_lines


@pytest.mark.parametrize(
    ("family", "scores", "answers"),
    [
        ("llama", "tree", "decode"),
        ("gpt_oss", "windowed tree", "decode"),
        ("deepseek_v3", "tree", "decode"),
        ("gemma3", "windowed tree", "decode"),
        ("qwen3_next", "copied state", "generate"),
        ("lfm2", "copied state", "generate"),
    ],
)
def test_a_family_of_each_kind_is_right_on_its_path(family: str, scores: str, answers: str) -> None:
    verdict = check_family(family)
    assert verdict.right, verdict.line()
    assert (verdict.scores, verdict.answers) == (scores, answers)


def layer_kinds(config: Any) -> dict[str, set[str]]:
    """Return the kinds of entries of a config's lists that say what layers are."""
    fields = config.get_text_config().to_dict()
    lists = {name: fields.get(name) for name in fields if "layer" in name and "type" in name}
    return {name: set(map(str, value)) for name, value in lists.items() if value}


def test_tiny_models_have_every_kind_of_layer_of_their_defaults() -> None:
    for family in set(families()) - NOT_ALONE.keys():
        default = CONFIG_MAPPING[family]()
        if hasattr(default, "get_text_config"):
            tiny = layer_kinds(tiny_config(family))
            for name, kinds in layer_kinds(default).items():
                assert kinds <= tiny[name], (family, name)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("lfm2", {"conv", "full_attention"}),
        ("lfm2_moe", {"conv", "full_attention"}),
        ("lfm3", {"conv", "full_attention", "sliding_attention"}),
        ("gemma3", {"full_attention", "sliding_attention"}),
        ("gpt_oss", {"full_attention", "sliding_attention"}),
        ("qwen3_next", {"full_attention", "linear_attention"}),
        ("granitemoehybrid", {"full_attention", "linear_attention"}),
        ("nemotron_h", {"full_attention", "linear_attention", "mlp", "moe"}),
    ],
)
def test_hybrids_are_built_with_their_mix_of_layers(family: str, kinds: set[str]) -> None:
    assert kinds in layer_kinds(tiny_config(family)).values()


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("jamba", ("JambaMambaMixer", "JambaAttention")),
        ("bamba", ("BambaMixer", "BambaAttention")),
        ("recurrent_gemma", ("RecurrentGemmaRecurrentBlock", "RecurrentGemmaAttention")),
    ],
)
def test_hybrids_that_count_their_layers_have_both_kinds(
    family: str, parts: tuple[str, ...]
) -> None:
    built = {type(module).__name__ for module in tiny_model(family).modules()}
    assert built.issuperset(parts), built


def test_encoders_that_can_be_decoders_are_told_apart() -> None:
    assert is_noncausal("bert")
    assert not is_noncausal("bart")
    assert not is_noncausal("llama")


def test_counts_keep_apart_what_is_no_decoder() -> None:
    fast = Verdict("a", scores="tree", answers="decode")
    slow = Verdict("b", scores="padded", answers="generate")
    others = [Verdict("c", encoder=True, refused="x"), Verdict("d", alone="y")]
    lines = " ".join(count_lines([fast, slow, *others, Verdict("e", built="z")]))
    assert "Of 5 families in the mapping 2 are decoders" in lines
    assert "2 are right (100%), 1 of them fast" in lines
    assert "1 are encoders" in lines
    assert "1 are no language models by themselves; 1 could not be built" in lines


def test_what_was_found_before_is_of_families_that_there_are() -> None:
    assert {name for names in BEFORE.values() for name in names} <= set(families())


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


def test_readme_says_what_the_page_counts() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    readme = " ".join((PAGE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    counts = r"mapping (\d+) are decoders .* \*\*(\d+) are right \((\d+%)\), (\d+)"
    found = re.search(counts, page)
    assert found is not None
    decoders, right, share, fast = found.groups()
    assert (
        f"of {decoders} families of decoders {right} are right ({share}), {fast} of them" in readme
    )
