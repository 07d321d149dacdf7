"""DPO + SFT optimizer steps, reference pass included: macpo's likelihood engine against TRL.

    python bench/dpo_step.py --data hh-harmless.jsonl.gz               # 64 pairs, 15-20 minutes
    python bench/dpo_step.py --data ... --pairs 16 --micro-batches 4   # quick

Each side runs in a process of its own and does one optimizer step (16 pairs) whenever it is told
to, so that the two alternate and a machine whose speed drifts is fair to both; its matmul speed is
measured between them. Both get the same token ids, LoRA, AdamW and loss (the SFT term averaged as
TRL does it). TRL may choose: its fastest micro-batch size, and the faster dtype. Ends with one
line of JSON.

Useful work of a step, for the share of the matmul peak (FLOP; a frozen base has no gradients of
weights, so the backward pass costs as much as the forward pass; attention's costs twice that):

    3 (reference, forward, backward) x 2 x weights of the decoder's linear layers x tokens in rows
  + 3 x 2 x weights of the LM head x completion tokens
  + 4 (reference 1, forward 1, backward 2) x 4 x layers x heads x head_dim x pairs of tokens that
    see each other
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_sides import BATCH, SIGN, add_common_options, load_groups, resolved, schedule


@dataclass
class Side:
    """A worker process and what it reported; the first step, to warm up, is not counted."""

    name: str
    process: subprocess.Popen[str]
    errors: Any
    warm_up: dict[str, float] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)

    def step(self) -> dict[str, float]:
        """Let it do one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(SIGN):
                return dict(json.loads(line.removeprefix(SIGN)))
        self.errors.seek(0)
        raise SystemExit(f"{self.name} ended:\n{self.errors.read()[-3000:]}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def median(self, key: str) -> float:
        return statistics.median(step[key] for step in self.steps)

    @property
    def pairs_per_second(self) -> float:
        return BATCH / self.median("seconds")


def start(args: argparse.Namespace, worker: str, dtype: str, micro_batch: int) -> Side:
    """Start a worker and let it warm up."""
    command = [sys.executable, str(Path(__file__).with_name("dpo_sides.py")), "--worker", worker]
    for name in ("model", "data", "pairs", "repeats", "threads", "pack_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    command += ["--dtype", dtype, "--micro-batch", str(micro_batch)]
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
    name = "macpo" if worker == "ours" else f"TRL, {micro_batch} pairs x {BATCH // micro_batch}"
    side = Side(f"{name}, {dtype}", process, errors)
    side.warm_up = side.step()
    say(f"{side.name}: warm-up {side.warm_up['seconds']:.1f} s, loss {side.warm_up['loss']:.4f}")
    return side


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def fastest_micro_batch(args: argparse.Namespace, dtype: str) -> int:
    """Try TRL's micro-batch sizes on one step each."""
    if len(args.micro_batches) == 1:
        return int(args.micro_batches[0])
    seconds: dict[int, float] = {}
    for size in args.micro_batches:
        side = start(args, "trl", dtype, size)
        seconds[size] = side.warm_up["seconds"]
        side.close()
    return min(seconds, key=lambda size: seconds[size])


def useful_gflop(args: argparse.Namespace, groups: Sequence[Any]) -> Callable[[list[Any]], float]:
    """Return a function that gives a batch's useful work in GFLOP (see the top of this file)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from macpo.likelihood import pack_groups

    config = AutoConfig.from_pretrained(resolved(args).location)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings().weight.numel()
    linear = [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_look = 4 * 4 * config.num_hidden_layers * config.num_attention_heads * head_dim

    def looks(group: Any) -> int:
        prompt = len(group.prompt)
        branches = [len(c) - 1 for c in group.completions]
        return prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in branches)

    def gflop(batch: list[Any]) -> float:
        packs = pack_groups(batch, args.pack_tokens)
        tokens = sum(p.tokens - p.shared_prefix * (len(p.groups) - 1) for p in packs)
        answers = sum(len(c) for g in batch for c in g.completions)
        products = 6 * ((sum(linear) - head) * tokens + head * answers)
        return (products + per_look * sum(map(looks, batch))) / 1e9

    return gflop


def compare(
    args: argparse.Namespace, dtype: str, micro_batch: int, gflop: list[float]
) -> Iterator[tuple[str, Any]]:
    """Alternate the two sides in one dtype; yield the named results."""
    import torch

    from macpo.machine import matmul_gflops

    ours, trl = start(args, "ours", dtype, micro_batch), start(args, "trl", dtype, micro_batch)
    torch.set_num_threads(args.threads)
    peaks = []
    for number in range(len(gflop)):
        for side in (ours, trl) if number % 2 == 0 else (trl, ours):
            peaks.append(matmul_gflops(dtype, torch.device("cpu")))
            side.steps.append(side.step())
        a, b = ours.steps[-1], trl.steps[-1]
        say(
            f"{dtype} step {number + 1} of {len(gflop)}: macpo {a['seconds']:.1f} s, TRL "
            f"{b['seconds']:.1f} s ({b['seconds'] / a['seconds']:.1f}x; CPU time "
            f"{b['cpu_seconds'] / a['cpu_seconds']:.1f}x), loss {a['loss']:.4f} and "
            f"{b['loss']:.4f}, matmul {peaks[-2]:.0f} and {peaks[-1]:.0f} GFLOP/s"
        )
    ours.close()
    trl.close()
    pairs = [(ours.warm_up, trl.warm_up), *zip(ours.steps, trl.steps, strict=True)]
    peak = statistics.median(peaks)
    rates = [g / step["seconds"] for g, step in zip(gflop, ours.steps, strict=True)]
    yield "ours_pairs_per_second", round(ours.pairs_per_second, 3)
    yield "trl_pairs_per_second", round(trl.pairs_per_second, 3)
    yield "ratio", round(statistics.median(b["seconds"] / a["seconds"] for a, b in pairs[1:]), 2)
    yield (
        "cpu_time_ratio",
        round(statistics.median(b["cpu_seconds"] / a["cpu_seconds"] for a, b in pairs[1:]), 2),
    )
    yield "largest_loss_difference", round(max(abs(a["loss"] - b["loss"]) for a, b in pairs), 5)
    yield "ours_peak_gib", round(max(step["peak_gib"] for step in ours.steps), 2)
    yield "trl_peak_gib", round(max(step["peak_gib"] for step in trl.steps), 2)
    yield "matmul_gflops", round(peak)
    yield "ours_share_of_matmul_peak", round(statistics.median(rates) / peak, 3)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_common_options(parser)
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[16, 4, 2], help="TRL's")
    parser.add_argument("--dtypes", nargs="+", help="default: float32, and the fastest one here")
    args = parser.parse_args()
    if args.pairs < BATCH or args.pairs % BATCH or any(BATCH % n for n in args.micro_batches):
        parser.error(f"--pairs is to be a multiple of {BATCH}, --micro-batches divisors of it")
    return args


def main() -> None:
    args = parse()
    import torch

    from macpo.machine import fastest_dtype

    torch.set_num_threads(args.threads)
    fastest, measured = fastest_dtype(torch.device("cpu"))
    say(f"matmul {', '.join(f'{k} {v:.0f} GFLOP/s' for k, v in measured.items())}: {fastest}")
    groups = load_groups(args)
    tokens = statistics.mean(group.tokens for group in groups)
    gflop = useful_gflop(args, groups)
    work = [gflop(batch) for batch in schedule(groups, args.repeats)[1:]]
    say(
        f"{len(groups)} pairs, {tokens:.0f} tokens each with the prompt once, "
        f"{sum(work) / len(work) / BATCH:.0f} GFLOP each; {args.threads} threads"
    )
    dtypes = args.dtypes or list(dict.fromkeys([fastest, "float32"]))
    micro_batch = fastest_micro_batch(args, dtypes[0])
    say(f"TRL is fastest with micro-batches of {micro_batch}")
    results = {dtype: dict(compare(args, dtype, micro_batch, work)) for dtype in dtypes}
    print(json.dumps(summary(args, results, micro_batch)))


def summary(
    args: argparse.Namespace, results: dict[str, dict[str, Any]], micro_batch: int
) -> dict[str, Any]:
    """Compare each side in its fastest dtype, and say what it was measured with."""
    import torch
    import transformers
    import trl

    speeds = ("ours_pairs_per_second", "trl_pairs_per_second")
    best = [max(results, key=lambda dtype: results[dtype][speed]) for speed in speeds]
    ours, theirs = (results[d][speed] for d, speed in zip(best, speeds, strict=True))
    same = best[0] == best[1]
    return {
        "ours": ours,
        "trl": theirs,
        "ratio": results[best[0]]["ratio"] if same else round(ours / theirs, 2),
        "ours_dtype": best[0],
        "trl_dtype": best[1],
        "trl_micro_batch": micro_batch,
        "by_dtype": results,
        "pairs": args.pairs,
        "repeats": args.repeats,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl_version": trl.__version__,
    }


if __name__ == "__main__":
    main()
