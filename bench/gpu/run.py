"""What only a GPU can prove, in one call: numerics first, then times.

    bash bench/gpu/run.sh                 # on a machine with a GPU; brings its wheels
    python bench/gpu/run.py --tiny        # the script itself, on a CPU, in seconds

1. Numerics. A small random Llama under LoRA: scores and gradients by every way to attend (`loop`,
   `varlen`, `flex`), in float32 and bfloat16, with and without a sliding window, and with
   activations computed again, against float32 on the CPU by the loop. A way that gives other
   numbers ends the script before anything is timed; one that the device does not have is said.
2. A DPO step: 16 pairs of HH-RLHF's lengths, random weights of Llama-2-7B's shape in bfloat16, LoRA
   on q and v, reference pass and AdamW included. Each way of ours, and `padded`: the batch as TRL's
   DPOTrainer forwards it, chosen and rejected as padded rows, log-softmax over all logits, in the
   largest micro-batches that fit. Seconds, peak memory, and the share of the card's dense bfloat16
   products that useful work takes (`macpo.planning.costs.flops` on tokens without padding).
3. Answers: tokens a second of macpo's own decoder.

Ends with one line of JSON; exit status 1 if numbers are wrong. `goals` are what we want to see.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import numpy as np
import torch

WAYS = ("loop", "varlen", "flex") if torch.cuda.is_available() else ("loop", "varlen")
"""FlexAttention has no way back on a CPU, and says so after compiling for a quarter of a minute."""
BATCH = 16
GOALS = {"ratio": 4.6, "mfu": 0.5}
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""By how much numbers may differ from the CPU's in float32, as shares of their norm."""

PROMPT, ANSWER = (110, 0.8, 512), (45, 0.8, 512)
"""Median, spread of the logarithm and limit of lengths in tokens: about those of HH-RLHF."""


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def make_model(shape: dict[str, Any], dtype: torch.dtype, device: str, targets: Any) -> Any:
    """Return a random Llama under LoRA whose B is not zero."""
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    from macpo.adapters import with_adapter
    from macpo.config import TuningConfig

    windowed = "sliding_window" in shape
    torch.manual_seed(0)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        config = (MistralConfig if windowed else LlamaConfig)(**shape)
        model = (MistralForCausalLM if windowed else LlamaForCausalLM)(config)
        torch.set_default_dtype(before)
    model.requires_grad_(False)
    model = with_adapter(model, TuningConfig(targets=targets), "bench").eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def draw_groups(pairs: int, vocabulary: int, scale: float = 1.0) -> list[Any]:
    """Return pairs of drawn lengths; prompts begin alike, as under a chat template."""
    from macpo.likelihood import PromptGroup

    rng = np.random.default_rng(0)

    def length(median: float, spread: float, limit: float) -> int:
        return int(np.clip(rng.lognormal(np.log(median * scale), spread), 2, limit * scale))

    def ids(count: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(3, vocabulary, count))

    start = ids(4)
    return [
        PromptGroup((*start, *ids(length(*PROMPT))), (ids(length(*ANSWER)), ids(length(*ANSWER))))
        for _ in range(pairs)
    ]


def engine_of(model: Any, way: str, pack_tokens: int, recompute: bool = False) -> Any:
    """Return a likelihood engine that attends in one way."""
    from macpo.attention import base_model
    from macpo.likelihood import LikelihoodEngine
    from macpo.likelihood.architecture import Architecture
    from macpo.likelihood.kernels import Chosen

    window = getattr(base_model(model).config, "sliding_window", None)
    plain = Architecture("", window, None, passes_window=True)
    return LikelihoodEngine(
        model,
        pack_tokens=pack_tokens,
        architecture=replace(plain, attention=Chosen(way, {})),
        checkpoint_activations=recompute,
    )


def outcome(engine: Any, groups: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores of all completions and the gradient of a weighted sum, on the CPU."""
    trains = [p for p in engine.model.parameters() if p.requires_grad]
    scores, total = [], [torch.zeros_like(p) for p in trains]
    for pack in engine.packs(groups):
        sums = engine.score_pack(pack)
        weights = torch.tensor([1.0, -0.5] * (len(sums) // 2), device=sums.device)
        for kept, new in zip(
            total, torch.autograd.grad((sums * weights).sum(), trains), strict=True
        ):
            kept += new
        scores.append(sums.detach())
    flat = torch.cat([t.flatten() for t in total])
    return torch.cat(scores).double().cpu(), flat.double().cpu()


def check_numerics(device: str, tiny: bool) -> dict[str, Any]:
    """Compare every way on the device with float32 on the CPU by the loop.

    Returns:
        Errors by name, or why there are none.

    Raises:
        SystemExit: a way gives other numbers.
    """
    small = {
        "hidden_size": 64 if tiny else 256,
        "intermediate_size": 128 if tiny else 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
        "initializer_range": 0.1,
    }
    found: dict[str, Any] = {}
    wrong = []
    groups = draw_groups(4, 500, 0.2 if tiny else 1.0)
    for shown, shape in {"full": small, "window": {**small, "sliding_window": 24}}.items():
        model = make_model(shape, torch.float32, "cpu", "all-linear")
        scores, gradient = outcome(engine_of(model, "loop", 1000), groups)
        for dtype in (torch.float32, torch.bfloat16):
            moved = make_model(shape, torch.float32, "cpu", "all-linear")
            for name, weight in moved.named_parameters():
                if "lora_" not in name:
                    weight.data = weight.data.to(dtype)
            moved = moved.to(device)
            for way in WAYS:
                for recompute in (False, True):
                    name = f"{shown} {way} {str(dtype)[6:]}{' recomputed' if recompute else ''}"
                    try:
                        ours, own = outcome(engine_of(moved, way, 1000, recompute), groups)
                    except Exception as error:  # whatever a device makes of a kernel it lacks
                        found[name] = f"not here: {type(error).__name__}: {str(error)[:120]}"
                        continue
                    errors = {
                        "scores": float((ours - scores).norm() / scores.norm()),
                        "gradients": float((own - gradient).norm() / gradient.norm()),
                    }
                    found[name] = errors
                    if not max(errors.values()) <= LIMITS[dtype]:
                        wrong.append(name)
                    say(f"numerics: {name}: {errors}")
    if wrong:
        print(json.dumps({"numerics": found, "wrong": wrong}))
        raise SystemExit(1)
    return found


def measured(step: Callable[[], None], device: str, repeats: int) -> dict[str, float]:
    """Return the median seconds of a step, and its peak memory in GiB on a card."""
    cuda = device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        if cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return {"seconds": float(np.median(seconds[1:])), "peak_gib": peak}


def dpo(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the sum of DPO losses of scores of chosen and rejected in turn."""
    ratio = (policy - reference).view(-1, 2)
    return -torch.nn.functional.logsigmoid(0.1 * (ratio[:, 0] - ratio[:, 1])).sum()


def our_step(engine: Any, groups: Sequence[Any], optimizer: Any) -> None:
    packs = engine.packs(groups)
    with torch.no_grad():
        references = [engine.score_pack(pack) for pack in packs]
    for pack, reference in zip(packs, references, strict=True):
        (dpo(engine.score_pack(pack), reference) / len(groups)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def padded_step(model: Any, groups: Sequence[Any], optimizer: Any, size: int) -> None:
    """Take a step as TRL forwards it: padded rows, all logits."""
    for first in range(0, len(groups), size):
        rows = [
            ((*g.prompt, *c), len(g.prompt)) for g in groups[first:][:size] for c in g.completions
        ]
        width = max(len(row) for row, _ in rows)
        device = next(model.parameters()).device
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row, _ in rows], device=device)
        places = torch.arange(width, device=device)
        lengths = torch.tensor([len(row) for row, _ in rows], device=device)[:, None]
        starts = torch.tensor([start for _, start in rows], device=device)[:, None]
        mask, answer = places < lengths, (places >= starts) & (places < lengths)

        def score(
            ids: torch.Tensor = ids, mask: torch.Tensor = mask, answer: torch.Tensor = answer
        ) -> torch.Tensor:
            logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
            logprobs = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
            return (logprobs * answer[:, 1:]).float().sum(1)

        with torch.no_grad():
            reference = score()
        (dpo(score(), reference) / len(groups)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def useful(model: Any, engine: Any, groups: Sequence[Any]) -> float:
    """Return the useful operations of a step: a reference pass and a training pass, no padding."""
    from macpo.attention import base_model
    from macpo.planning.costs import flops
    from macpo.work import Work

    base = base_model(model)
    head = base.get_output_embeddings().weight.numel()
    outer = {
        id(p)
        for m in (base.get_input_embeddings(), base.get_output_embeddings())
        for p in m.parameters()
    }
    met = sum(p.numel() for p in base.parameters() if id(p) not in outer)
    tokens = sum(p.tokens - p.shared_prefix * (len(p.groups) - 1) for p in engine.packs(groups))
    answers = sum(len(c) for g in groups for c in g.completions)
    work = Work(read=tokens, trained=tokens, scored=answers, learned=answers)
    return flops(work, met, "lora", head)


def time_steps(args: argparse.Namespace, device: str, peak_tflops: float | None) -> dict[str, Any]:
    """Time a DPO step by every way, and padded."""
    dtype = torch.float32 if args.tiny else torch.bfloat16
    shape = SHAPES["tiny" if args.tiny else args.shape]
    model = make_model(shape, dtype, device, ("q_proj", "v_proj"))
    groups = draw_groups(4 if args.tiny else BATCH, shape["vocab_size"], 0.1 if args.tiny else 1.0)
    trains = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trains, lr=1e-5)
    found: dict[str, Any] = {}
    operations = 0.0
    for way in WAYS:
        for recompute in (False, True):
            name = way + (" recomputed" if recompute else "")
            engine = engine_of(model, way, args.pack_tokens, recompute)
            operations = useful(model, engine, groups)
            try:
                found[name] = measured(
                    lambda engine=engine: our_step(engine, groups, optimizer), device, args.repeats
                )
            except Exception as error:
                found[name] = f"not here: {type(error).__name__}: {str(error)[:120]}"
                optimizer.zero_grad(set_to_none=True)
            say(f"step: {name}: {found[name]}")
    size = len(groups)
    while size:
        try:
            found["padded"] = measured(
                lambda size=size: padded_step(model, groups, optimizer, size), device, args.repeats
            ) | {"micro_batch": size}
            break
        except torch.OutOfMemoryError:
            optimizer.zero_grad(set_to_none=True)
            gc.collect()
            size //= 2
    say(f"step: padded: {found.get('padded')}")
    if peak_tflops:
        for result in found.values():
            if isinstance(result, dict):
                result["mfu"] = operations / result["seconds"] / peak_tflops / 1e12
    ours = {k: v for k, v in found.items() if k != "padded" and isinstance(v, dict)}
    fastest = min(ours, key=lambda name: ours[name]["seconds"])
    summary = {"fastest": fastest, "useful_tflop": operations / 1e12, "sides": found}
    if "padded" in found:
        summary["ratio"] = found["padded"]["seconds"] / ours[fastest]["seconds"]
    return summary | {"decode": time_decoding(model, args, device)}


def time_decoding(model: Any, args: argparse.Namespace, device: str) -> dict[str, Any]:
    """Return tokens a second of macpo's own decoder, greedy, no answer ends early."""
    from macpo.config import SamplingConfig
    from macpo.generation.decode import decode

    count, written = (4, 4) if args.tiny else (64, 128)
    prompts = [g.prompt for g in draw_groups(count, 500, 0.1 if args.tiny else 1.0)]
    sampling = SamplingConfig(temperature=0, max_new_tokens=written)

    def answer() -> None:
        decode(
            model,
            prompts,
            stop_ids=frozenset(),
            sampling=sampling,
            seeds=list(range(count)),
            memory_gib=0.1 if args.tiny else 8.0,
            pack_tokens=args.pack_tokens,
        )

    taken = measured(answer, device, 1)
    return taken | {"tokens_per_second": count * written / taken["seconds"], "answers": count}


SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 500,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--shape", default="7b", choices=sorted(SHAPES))
    parser.add_argument("--pack-tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tflops", type=float, help="the card's dense bfloat16, for the MFU")
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        raise SystemExit("torch finds no GPU; --tiny tries the script on a CPU")
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    say(f"torch {torch.__version__} on {name}")
    tflops = args.tflops or next((t for part, t in TFLOPS.items() if part in name), None)
    result = {
        "device": name,
        "torch": torch.__version__,
        "numerics": check_numerics(device, args.tiny),
        "step": time_steps(args, device, tflops),
        "goals": GOALS,
    }
    print(json.dumps(result))


TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "B200": 2250, "A100": 312}
"""By what torch calls the card; from `macpo.planning.cards`."""


if __name__ == "__main__":
    main()
