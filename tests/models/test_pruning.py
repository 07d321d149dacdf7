from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2Model, Qwen2MoeConfig

from macpo.config import ModelConfig
from macpo.errors import ModelError
from macpo.models.chat import Chat
from macpo.models.folders import weight_files
from macpo.models.loading import load_model, load_tokenizer, parameter_count
from macpo.models.sources import ResolvedModel, resolve
from tests.sweep.families import tiny_config as sweep_config
from tests.tiny import ARCHITECTURES, tiny_config, tiny_folder, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 43).reshape(2, 20)


def cut(folder: Path, layers: str, **options: Any) -> ResolvedModel:
    return resolve(ModelConfig(source=str(folder), layers=layers), **options)


def cut_by_hand(model: Any, kept: list[int]) -> Any:
    """Drop the other layers of a loaded model, whatever it calls them."""
    for module in model.modules():
        for name, layers in module.named_children():
            if isinstance(layers, nn.ModuleList) and len(layers) == model.config.num_hidden_layers:
                setattr(module, name, nn.ModuleList(layers[i] for i in kept))
                types = getattr(model.config, "layer_types", None)
                if types is not None:
                    model.config.layer_types = [types[i] for i in kept]
                model.config.num_hidden_layers = len(kept)
                for index, layer in enumerate(getattr(module, name)):
                    for part in layer.modules():
                        if hasattr(part, "layer_idx"):
                            part.layer_idx = index
                return model
    raise AssertionError("no layers")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pruned_model_gives_the_logits_of_one_cut_by_hand(
    tmp_path: Path, architecture: str
) -> None:
    # With a window of 4 it matters which of Gemma 2's layers see everything.
    window = {"sliding_window": 4} if architecture == "gemma2" else {}
    folder = tiny_folder(tmp_path / "base", architecture, layers=6, **window)
    resolved = cut(folder, "0-1,4,5")
    model = load_model(resolved, torch.float32, "cpu")
    expected = cut_by_hand(tiny_model(architecture, layers=6, **window), [0, 1, 4, 5])
    assert model.config.num_hidden_layers == 4
    torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=0, atol=0)


def test_pruned_layers_keep_their_keys_and_values_apart(tmp_path: Path) -> None:
    """A cache is addressed by layer number; two layers with one number would share a slot."""
    model = load_model(cut(tiny_folder(tmp_path / "base", layers=4), "0,3"), torch.float32, "cpu")
    start = model(IDS[:, :12], use_cache=True)
    rest = model(IDS[:, 12:], past_key_values=start.past_key_values)
    torch.testing.assert_close(rest.logits, model(IDS).logits[:, 12:])


def test_layers_come_in_the_order_given(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base", layers=4)
    model = load_model(cut(folder, "2,0"), torch.float32, "cpu")
    expected = cut_by_hand(tiny_model(layers=4), [2, 0])
    torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=0, atol=0)


def test_lists_over_layers_are_cut_with_them(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base", "gemma2", layers=4)
    config = json.loads((folder / "config.json").read_text())
    assert config["layer_types"] == ["sliding_attention", "full_attention"] * 2
    del config["layer_types"]  # as in files from before the list was written down
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(cut(folder, "1,2,3"), torch.float32, "cpu")
    assert model.config.layer_types == ["full_attention", "sliding_attention", "full_attention"]


def test_token_lists_as_long_as_the_model_are_left_alone(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base", layers=2, eos_token_id=[1, 2])
    model = load_model(cut(folder, "1"), torch.float32, "cpu")
    assert model.config.eos_token_id == [1, 2]


def test_weights_in_shards_are_cut_shard_by_shard(tmp_path: Path) -> None:
    whole = tiny_folder(tmp_path / "whole", layers=4)
    sharded = tmp_path / "sharded"
    tiny_model(layers=4).save_pretrained(sharded, max_shard_size="60kB")
    tiny_tokenizer().save_pretrained(sharded)
    assert len(weight_files(sharded)) > 2
    resolved = cut(sharded, "0,3")
    assert len(weight_files(Path(resolved.location))) > 1
    model = load_model(resolved, torch.float32, "cpu")
    expected = load_model(cut(whole, "0,3"), torch.float32, "cpu")
    torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=0, atol=0)


def test_files_of_a_bare_base_model_are_cut_too(tmp_path: Path) -> None:
    """GPT-2's files on the hub name their tensors h.0..., not transformer.h.0..."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=512, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    base = GPT2Model(config).eval()
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = load_model(cut(tmp_path / "base", "0,2"), torch.float32, "cpu")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    expected = cut_by_hand(whole, [0, 2])
    torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=0, atol=0)


def test_dtype_and_tokenizer_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    tiny_model(layers=3).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    resolved = cut(folder, "0,2")
    with safe_open(weight_files(Path(resolved.location))[0], framework="pt") as weights:
        assert {str(weights.get_tensor(name).dtype) for name in weights.keys()} == {  # noqa: SIM118
            "torch.bfloat16"
        }
    assert (
        Chat(load_tokenizer(resolved)).fingerprint
        == Chat(load_tokenizer(resolve_base(folder))).fingerprint
    )


def resolve_base(folder: Path) -> ResolvedModel:
    return resolve(ModelConfig(source=str(folder)))


@pytest.mark.parametrize("fetch", [True, False])
def test_layer_out_of_range_names_the_valid_range(tmp_path: Path, fetch: bool) -> None:
    folder = tiny_folder(tmp_path / "base", layers=4)
    with pytest.raises(ModelError) as caught:
        cut(folder, "0-1,4-5", fetch=fetch)
    assert str(caught.value) == (
        "base: there is no layer 4; it has 4 layers, so `layers` can name 0-3"
    )


def test_layer_that_would_change_by_moving_is_refused(tmp_path: Path) -> None:
    """Qwen2-MoE has experts in every `decoder_sparse_step`-th layer, counted by position."""
    config = Qwen2MoeConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=3,
        num_experts_per_tok=2,
        decoder_sparse_step=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "moe")
    with pytest.raises(ModelError, match=r"moe: layer 1 would behave differently as layer 0 \("):
        cut(tmp_path / "moe", "1-3")
    model = load_model(cut(tmp_path / "moe", "2-3"), torch.float32, "cpu")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "moe")
    expected = cut_by_hand(whole, [2, 3])
    torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=0, atol=1e-6)


def family_folder(path: Path, family: str, **overrides: Any) -> Any:
    """Save a tiny model of some family, and return it."""
    config = sweep_config(family)
    config = type(config)(**{**config.to_dict(), **overrides})
    if family == "gemma3n_text":
        config.intermediate_size = [64] * config.num_hidden_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(path)
    return model


def parts(tensor: torch.Tensor, dim: int, kept: list[int]) -> nn.Parameter:
    whole = tensor.detach().unflatten(dim, (4, -1))
    return nn.Parameter(whole.index_select(dim, torch.tensor(kept)).flatten(dim, dim + 1))


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_embeddings_for_each_layer_are_cut_with_the_layers(tmp_path: Path, family: str) -> None:
    """Beside three layers Gemma 3n keeps lists of three projections, which are not layers."""
    whole = family_folder(tmp_path / "base", family)
    kept = [0, 1, 3]
    model = load_model(cut(tmp_path / "base", "0,1,3"), torch.float32, "cpu")
    expected = cut_by_hand(whole, kept)
    inner = expected.model
    inner.embed_tokens_per_layer.weight = parts(inner.embed_tokens_per_layer.weight, 1, kept)
    projection = inner.per_layer_model_projection
    projection.weight = parts(projection.weight, 0, kept)
    with torch.no_grad():
        ours, theirs = (m(IDS, use_cache=False).logits for m in (model, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_layers_that_files_keep_under_another_name_are_cut(tmp_path: Path) -> None:
    """Nemotron-H's files say backbone.layers, its model says model.layers."""
    whole = family_folder(tmp_path / "base", "nemotron_h")
    [file] = weight_files(tmp_path / "base")
    with safe_open(file, framework="pt") as weights:
        assert any(name.startswith("backbone.layers.") for name in weights.keys())  # noqa: SIM118
    model = load_model(cut(tmp_path / "base", "0,2,3"), torch.float32, "cpu")
    assert len(model.model.layers) == 3
    with torch.no_grad():
        for layer, old in zip(model.model.layers, (0, 2, 3), strict=True):
            for name, parameter in whole.model.layers[old].named_parameters():
                assert torch.equal(layer.get_parameter(name), parameter)
    assert model.config.layer_types == [whole.config.layer_types[i] for i in (0, 2, 3)]


def test_last_layer_that_would_see_everything_is_refused(tmp_path: Path) -> None:
    """Gemma 4 makes its last layer see everything, whatever the list says."""
    family_folder(tmp_path / "base", "gemma4_text")
    with pytest.raises(ModelError) as caught:
        cut(tmp_path / "base", "0,2")
    assert str(caught.value) == (
        "base: layer 2 would behave differently as layer 1 (self_attn.is_sliding: True becomes "
        "False): Gemma4TextConfig decides this by position; keep layers that stay alike"
    )


def test_layers_that_the_config_does_not_allow_alone_are_refused(tmp_path: Path) -> None:
    """Gemma 4's last layers use the keys of earlier ones, which are to be cut out here."""
    family_folder(tmp_path / "base", "gemma4_text", num_kv_shared_layers=2)
    with pytest.raises(ModelError) as caught:
        cut(tmp_path / "base", "0-1")
    assert str(caught.value) == (
        "base: Gemma4TextConfig allows no model of these layers alone (ValueError: The set of "
        "layer types producing a cache is different than the set of layer types using them); keep "
        "others"
    )


def test_incomplete_weight_files_are_refused(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base", layers=2)
    tiny_config(layers=4).save_pretrained(folder)
    with pytest.raises(ModelError, match="its weight files hold no layer 3; fetch it again"):
        cut(folder, "0,3")


def test_planning_gives_digest_and_size_without_cutting(tmp_path: Path, cache: Path) -> None:
    folder = tiny_folder(tmp_path / "base", layers=4)
    planned = cut(folder, "0, 2-3", fetch=False)
    assert (planned.name, planned.local, planned.layers) == ("base[0,2-3]", False, (0, 2, 3))
    assert not (cache / "models").exists()
    with pytest.raises(ModelError, match=r"base\[0,2-3\]: its weights are not on this machine"):
        load_model(planned, torch.float32, "cpu")

    made = cut(folder, "0,2-3")
    assert (made.digest, made.local, made.layers) == (planned.digest, True, ())
    assert cut(folder, "0,2-3", fetch=False) == made
    assert parameter_count(planned) == parameter_count(made)
    model = load_model(made, torch.float32, "cpu")
    count = parameter_count(made)
    assert count is not None
    assert count.count == sum(weight.numel() for weight in model.parameters())


def test_digest_depends_on_base_and_layers(tmp_path: Path) -> None:
    first = tiny_folder(tmp_path / "a", layers=4)
    second = tiny_folder(tmp_path / "b", layers=4, seed=1)
    digests = [cut(first, "0,2").digest, cut(first, "2,0").digest, cut(second, "0,2").digest]
    assert len({*digests, resolve_base(first).digest}) == 4
