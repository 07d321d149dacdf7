"""Training by several processes of one machine against one process: tokens a second.

python bench/processes.py --processes 2

A model of random weights trains LoRA adapters on random groups; only its speed counts. On CPUs the
threads of one process are shared out among several, so that both sides use the same cores; on GPUs
each process has one. What comes of both sides is compared beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from macpo.adapters import draw_adapter, with_adapter
from macpo.config import EngineConfig, SFTConfig, TuningConfig
from macpo.likelihood import PromptGroup
from macpo.likelihood.architecture import inspect_architecture
from macpo.machine import choose_device
from macpo.policies import LoadedPolicy
from macpo.ranks import ALONE, Ranks
from macpo.ranks.launch import answered, started
from macpo.store import Checkpoints
from macpo.training.loop import Trainer
from macpo.training.objectives import SFTObjective


def make_policy(width: int, layers: int, device: torch.device) -> LoadedPolicy:
    """Return a llama of random weights with an adapter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config).to(device).eval()
    architecture = inspect_architecture(model)
    model.requires_grad_(False)
    adapted = with_adapter(model, TuningConfig(rank=16, targets=("q_proj", "v_proj")), "llama")
    trainable = {n: p for n, p in sorted(adapted.named_parameters()) if p.requires_grad}
    draw_adapter(trainable, 0)
    chat: Any = None  # nothing is encoded here
    return LoadedPolicy(adapted, chat, architecture, trainable)


def make_groups(count: int) -> list[PromptGroup]:
    """Return groups about as long as those of HH-RLHF."""
    draw = random.Random(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(8192) for _ in range(draw.randint(low, high)))

    return [PromptGroup(ids(50, 250), (ids(20, 150),)) for _ in range(count)]


def train(ranks: Ranks, options: argparse.Namespace) -> tuple[float, list[float]]:
    """Train; return the seconds of all steps but the first, and the losses."""
    device = choose_device(options.device, ranks.on_this_machine, ranks.local_rank)
    policy = make_policy(options.width, options.layers, device)
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            policy,
            SFTObjective(make_groups(options.steps * options.batch)),
            SFTConfig(epochs=1, batch_size=options.batch, learning_rate=1e-3),
            seed=0,
            engine=EngineConfig(checkpoint_steps=10**6),
            checkpoints=Checkpoints(Path(folder), ranks),
            progress=lambda done, total, **fields: ends.append(time.monotonic()),
            ranks=ranks,
        )
        log = trainer.train()
    return ends[-1] - ends[0], [row["loss"] for row in log]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rank", nargs=4, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank, size, port, _ = options.rank
        train(answered(rank, size, port), options)
        sys.stderr.flush()
        os._exit(0)
    groups = make_groups(options.steps * options.batch)
    tokens = sum(g.tokens for g in groups) * (options.steps - 1) / options.steps
    threads = torch.get_num_threads()
    one_seconds, one = train(ALONE, options)
    print(f"1 process: {tokens / one_seconds:.0f} tokens/s", flush=True)
    command = [sys.executable, *sys.argv, "--rank"]
    with started(options.processes, command) as ranks:
        seconds, several = train(ranks, options)
    print(f"{options.processes} processes: {tokens / seconds:.0f} tokens/s", flush=True)
    apart = max(abs(a - b) for a, b in zip(one, several, strict=True))
    assert apart < 1e-3, f"losses differ by {apart}"
    print(
        json.dumps(
            {
                "bench": "processes",
                "processes": options.processes,
                "device": str(choose_device(options.device)),
                "threads": threads,
                "one_tokens_per_second": round(tokens / one_seconds, 1),
                "tokens_per_second": round(tokens / seconds, 1),
                "ratio": round(one_seconds / seconds, 2),
                "losses_apart": apart,
            }
        )
    )


if __name__ == "__main__":
    main()
