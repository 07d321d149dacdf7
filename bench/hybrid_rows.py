"""Scoring and training with a hybrid: copies of each prompt's state against padded rows.

python bench/hybrid_rows.py --family qwen3_5_text

A model of random weights stands for the family; only its speed counts. Both sides score the same
groups by turns, in one process, so that the ratio is fair though the machine is shared; before
that their numbers are compared. The useful tokens are those of a tree: a prompt once.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

FAMILIES = ("qwen3_5_text", "lfm2", "falcon_h1", "nemotron_h", "mamba")
WAYS = ("copies", "rows")


def build(family: str, width: int, layers: int) -> Any:
    """Return a model with random weights: three recurrent layers to one with attention."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = {"lfm2": "conv"}.get(family, "linear_attention")
    kinds = [kind, kind, kind, "full_attention"] * layers
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 128}
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    own: dict[str, dict[str, Any]] = {
        "falcon_h1": {"mamba_d_ssm": 2 * width, "mamba_n_heads": width // 32, "head_dim": 64},
        "nemotron_h": {
            "layers_block_type": kinds[:layers],
            "mamba_num_heads": width // 32,
            "mamba_head_dim": 64,
        },
        "qwen3_5_text": {
            "layer_types": kinds[:layers],
            "linear_num_value_heads": width // 64,
            "linear_num_key_heads": width // 64,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
            "head_dim": 64,
        },
        "lfm2": {"layer_types": kinds[:layers]},
    }
    fields = shape | (heads if family != "mamba" else {}) | own.get(family, {})
    config = CONFIG_MAPPING[family](vocab_size=8192, **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def draw_groups(args: argparse.Namespace) -> list[Any]:
    """Return groups whose prompts and answers are of half to one and a half times the lengths."""
    from macpo.likelihood import PromptGroup

    draw = random.Random(0)

    def tokens(mean: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 8000) for _ in range(draw.randint(mean // 2, 3 * mean // 2)))

    return [
        PromptGroup(tokens(args.prompt), tuple(tokens(args.answer) for _ in range(args.answers)))
        for _ in range(args.groups)
    ]


def score(engine: Any, groups: Sequence[Any]) -> None:
    """Forward all groups without gradients."""
    engine.score(groups)


def train(engine: Any, groups: Sequence[Any]) -> None:
    """Forward and backward through all groups."""
    for pack in engine.packs(groups):
        engine.score_pack(pack).sum().backward()
    engine.model.zero_grad(set_to_none=True)


def fastest(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the seconds of the fastest round of each, taken by turns after one to warm up."""
    seconds = dict.fromkeys(works, float("inf"))
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number:
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0])
    parser.add_argument("--width", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=200, help="mean tokens of a prompt")
    parser.add_argument("--answer", type=int, default=100, help="mean tokens of an answer")
    parser.add_argument("--answers", type=int, default=2, help="to each prompt")
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--pack-tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    from macpo.adapters import with_adapter
    from macpo.config import TuningConfig
    from macpo.likelihood import LikelihoodEngine

    model = build(args.family, args.width, args.layers).requires_grad_(False)
    parameters = sum(p.numel() for p in model.parameters())
    adapted = with_adapter(model, TuningConfig(targets=("auto",)), args.family).eval()
    copies = LikelihoodEngine(adapted, pack_tokens=args.pack_tokens)
    plain = replace(copies.architecture, branching=None)
    rows = LikelihoodEngine(adapted, pack_tokens=args.pack_tokens, architecture=plain)
    groups = draw_groups(args)
    sums = [
        torch.tensor([s.sum_logprob for scores in engine.score(groups) for s in scores])
        for engine in (copies, rows)
    ]
    useful = sum(group.tokens for group in groups)
    engines = dict(zip(WAYS, (copies, rows), strict=True))
    result: dict[str, Any] = {
        "family": args.family,
        "parameters": parameters,
        "threads": torch.get_num_threads(),
        "branching": str(copies.architecture.branching),
        "tokens": {w: e.tokens_read(groups, gradients=False) for w, e in engines.items()},
        "useful_tokens": useful,
        "largest_difference_nats": float((sums[0] - sums[1]).abs().max()),
    }
    for what, work in (("score", score), ("train", train)):
        works = {way: functools.partial(work, engine, groups) for way, engine in engines.items()}
        seconds = fastest(works, args.rounds)
        speed = {way: useful / taken for way, taken in seconds.items()}
        ratio = speed["copies"] / speed["rows"]
        shown = ", ".join(f"{way} {value:,.0f}" for way, value in speed.items())
        print(f"{what}: {shown} useful tokens/s; {ratio:.2f} times as fast")
        result[what] = {**speed, "ratio": ratio}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
