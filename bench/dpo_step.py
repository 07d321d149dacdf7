"""DPO + SFT optimizer steps, reference pass included: macpo's likelihood engine against TRL.

    python bench/dpo_step.py --data hh-harmless.jsonl.gz               # 64 pairs, 45 minutes
    python bench/dpo_step.py --data ... --pairs 16 --micro-batches 2   # quick

Each side runs in a process of its own and does one optimizer step (16 pairs) whenever it is told
to, so that they alternate and a machine whose speed drifts is fair to all; its matmul speed is
measured between them. All get the same token ids, LoRA, AdamW and loss (the SFT term averaged as
TRL does it). TRL is there once for each of its micro-batch sizes: the whole batch at once, and in
smaller ones that pad less. Ends with one line of JSON: `ratio` is to TRL with the whole batch
at once (or the largest part of it that memory allows), each side in its faster dtype;
`ratio_to_fastest` is to TRL with the micro-batch size that was best for it.

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
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_sides import (
    BATCH,
    MICRO_BATCHES,
    SIGN,
    add_common_options,
    load_groups,
    resolved,
    schedule,
)


class OutOfMemory(Exception):
    """The kernel ended a side."""


@dataclass
class Side:
    """A worker process and what it reported; the first step, to warm up, is not counted."""

    name: str
    micro_batch: int
    process: subprocess.Popen[str]
    errors: Any
    warm_up: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def step(self) -> dict[str, Any]:
        """Let it do one step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(SIGN):
                return dict(json.loads(line.removeprefix(SIGN)))
        if self.process.wait() == -signal.SIGKILL:
            raise OutOfMemory(f"{self.name} was killed, for lack of memory most likely")
        self.errors.seek(0)
        raise SystemExit(f"{self.name} ended:\n{self.errors.read()[-3000:]}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def start(args: argparse.Namespace, worker: str, dtype: str, micro_batch: int = BATCH) -> Side:
    """Start a worker and let it warm up."""
    command = [sys.executable, str(Path(__file__).with_name("dpo_sides.py")), "--worker", worker]
    for name in ("model", "data", "pairs", "repeats", "threads", "pack_tokens"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    command += ["--dtype", dtype, "--micro-batch", str(micro_batch)]
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the worker
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
    name = "macpo" if worker == "ours" else f"TRL, {micro_batch} x {BATCH // micro_batch}"
    side = Side(name, micro_batch, process, errors)
    side.warm_up = side.step()
    say(f"{side.name}: warm-up {side.warm_up['seconds']:.1f} s")
    return side


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


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


def compare(args: argparse.Namespace, dtype: str, gflop: list[float]) -> dict[str, Any]:
    """Time both sides in one dtype; return the named results."""
    all_ours: list[dict[str, Any]] = []
    trl: dict[str, dict[str, float]] = {}
    peaks: list[float] = []
    work: list[float] = []
    for size in args.micro_batches:  # one after the other: memory is for one TRL at a time
        ours = start(args, "ours", dtype)
        try:
            side = start(args, "trl", dtype, size)
            for number in range(len(gflop)):
                peaks += take_turns((ours, side), number, dtype)
        except OutOfMemory as error:
            say(str(error))
            continue
        finally:
            ours.close()
        side.close()
        all_ours += ours.steps
        work += gflop
        trl[str(size)] = {
            "trl_pairs_per_second": pairs_per_second(side.steps),
            "trl_peak_gib": peak_gib(side.steps),
            "ratio": ratio(ours.steps, side.steps, "seconds"),
            "cpu_time_ratio": ratio(ours.steps, side.steps, "cpu_seconds"),
            "largest_loss_difference": loss_difference(ours, side),
        }
    peak = statistics.median(peaks)
    rates = [g / step["seconds"] for g, step in zip(work, all_ours, strict=True)]
    return {
        "ours_pairs_per_second": pairs_per_second(all_ours),
        "ours_peak_gib": peak_gib(all_ours),
        "ours_share_of_matmul_peak": round(statistics.median(rates) / peak, 3),
        "matmul_gflops": round(peak),
        "trl_micro_batches": trl,
    }


def take_turns(sides: tuple[Side, Side], number: int, dtype: str) -> list[float]:
    """Let each side do step `number`; return the matmul speed before each, in GFLOP/s."""
    import torch

    from macpo.machine import matmul_gflops

    peaks = []
    for side in sides if number % 2 == 0 else sides[::-1]:
        peaks.append(matmul_gflops(dtype, torch.device("cpu")))
        side.steps.append(side.step())
    a, b = (side.steps[-1] for side in sides)
    say(
        f"{dtype} step {number + 1}: macpo {a['seconds']:.1f} s, {sides[1].name} "
        f"{b['seconds']:.1f} s ({b['seconds'] / a['seconds']:.1f}x), "
        f"matmul {peaks[0]:.0f} and {peaks[1]:.0f} GFLOP/s"
    )
    return peaks


def pairs_per_second(steps: list[dict[str, Any]]) -> float:
    return round(BATCH / statistics.median(step["seconds"] for step in steps), 3)


def peak_gib(steps: list[dict[str, Any]]) -> float:
    return round(max(step["peak_gib"] for step in steps), 2)


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], key: str) -> float:
    """How many times our time theirs is: the median over the steps."""
    return round(statistics.median(b[key] / a[key] for a, b in zip(ours, theirs, strict=True)), 2)


def loss_difference(ours: Side, trl: Side) -> float:
    """The largest difference in the loss of a step, as TRL weighs it with its micro-batches."""
    size = str(trl.micro_batch)
    steps = zip([ours.warm_up, *ours.steps], [trl.warm_up, *trl.steps], strict=True)
    return round(max(abs(a["loss"][size] - b["loss"][size]) for a, b in steps), 5)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_common_options(parser)
    parser.add_argument(
        "--micro-batches",
        type=int,
        nargs="+",
        default=[16, 8, 2],
        choices=MICRO_BATCHES,
        help="TRL's",
    )
    parser.add_argument("--dtypes", nargs="+", help="default: float32, and the fastest one here")
    args = parser.parse_args()
    if args.pairs < BATCH or args.pairs % BATCH:
        parser.error(f"--pairs is to be a multiple of {BATCH}")
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
    print(json.dumps(summary(args, {dtype: compare(args, dtype, work) for dtype in dtypes})))


def summary(args: argparse.Namespace, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare each side in its fastest dtype, and say what it was measured with."""
    import torch
    import transformers
    import trl

    theirs = {
        (dtype, size): row
        for dtype, result in results.items()
        for size, row in result["trl_micro_batches"].items()
    }
    ours = max(results, key=lambda dtype: results[dtype]["ours_pairs_per_second"])

    def fastest(keys: Iterable[tuple[str, str]]) -> tuple[str, str]:
        return max(keys, key=lambda key: theirs[key]["trl_pairs_per_second"])

    def advantage(key: tuple[str, str]) -> float:
        if key[0] == ours:  # both were timed side by side
            return float(theirs[key]["ratio"])
        speed = results[ours]["ours_pairs_per_second"] / theirs[key]["trl_pairs_per_second"]
        return round(speed, 2)

    largest = {
        dtype: max(result["trl_micro_batches"], key=int) for dtype, result in results.items()
    }
    whole = fastest(largest.items())
    best = fastest(theirs)
    return {
        "ours": results[ours]["ours_pairs_per_second"],
        "trl": theirs[whole]["trl_pairs_per_second"],
        "ratio": advantage(whole),
        "ratio_to_fastest": advantage(best),
        "ours_dtype": ours,
        "trl_dtype": whole[0],
        "trl_micro_batch": int(whole[1]),
        "trl_fastest": {"dtype": best[0], "micro_batch": int(best[1])},
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
