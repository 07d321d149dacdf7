"""What is checked of a family, each against the model's own plain forward of one sequence."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from macpo.adapters import quiet_peft, with_adapter
from macpo.agents import Policy
from macpo.config import SamplingConfig, TuningConfig
from macpo.generation.decode import decode
from macpo.generation.fallback import decode_by_generate, refuse_mute
from macpo.generation.servable import Refused, examine
from macpo.likelihood import LikelihoodEngine, PromptGroup
from macpo.policies import snapshot
from macpo.probe import own_logits
from macpo.publish import publish
from tests.likelihood.plain import completions_of, plain_sums
from tests.sweep.families import NOT_ALONE, is_encoder, tiny_config, tiny_model
from tests.tiny import tiny_tokenizer
from tests.workbench import Workbench, make_agent, randomise

NATS = 2e-3
GRADIENT = 1e-3
NEW_TOKENS = 6


@dataclass
class Verdict:
    """What was found of a family; `faults` maps a check to one line, and is empty if all is right.

    `scores` is the path of likelihood, `answers` that of decoding, `targets` what adapters went
    over. `alone` says why it is no language model by itself, `built` why it could not be built.
    A family of which `encoder` holds is looked at as a decoder, which by default it is not.
    """

    family: str
    alone: str = ""
    encoder: bool = False
    built: str = ""
    refused: str = ""
    scores: str = ""
    why_padded: str = ""
    answers: str = ""
    why_generate: str = ""
    targets: str = ""
    faults: dict[str, str] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether the family is served, and every number is right."""
        return not (self.alone or self.built or self.refused or self.faults)

    @property
    def fast(self) -> bool:
        """Whether prompts are computed once for scoring, and decoding is macpo's own."""
        return self.scores in ("tree", "windowed tree") and self.answers == "decode"

    @property
    def kind(self) -> str:
        """The verdict in a word or two."""
        if self.alone:
            return "no language model"
        if self.built:
            return "not built"
        if self.refused:
            return "refused"
        return "wrong" if self.faults else "right"

    @property
    def says(self) -> str:
        """The verdict as the page has it, with the reason where it is not `right`."""
        reason = self.alone or self.built or self.refused
        faults = "; ".join(f"{check}: {fault}" for check, fault in self.faults.items())
        says = f"{self.kind}: {reason or faults}" if reason or faults else self.kind
        return f"no decoder by default; as one {says}" if self.encoder else says

    def line(self) -> str:
        """Everything in one line, for the screen."""
        paths = f"{self.scores}, {self.answers}" if self.scores else "-"
        why = "; ".join(filter(None, (self.why_padded, self.why_generate)))
        return f"{self.family}: {self.says} | {paths} | {self.targets} | {why}"


def sequence(start: int, length: int) -> tuple[int, ...]:
    return tuple(2 + (37 * (start + i) * (start + 3) + 11 * i) % 500 for i in range(length))


START = sequence(90, 5)
GROUPS = [
    PromptGroup(START + sequence(1, 4), (sequence(2, 6), sequence(3, 3), sequence(4, 1))),
    PromptGroup(START + sequence(5, 30), (sequence(6, 20), sequence(7, 9))),  # over the windows
    PromptGroup(START + sequence(8, 1), (sequence(9, 5),)),
]
PROMPTS = [START + sequence(10 + n, length) for n, length in enumerate((1, 30, 6))]


def check_family(family: str, build: Callable[[str], Any] = tiny_model) -> Verdict:
    """Build a family's tiny model and check all that is claimed of models."""
    verdict = Verdict(family)
    complete(verdict, build)
    return verdict


def complete(verdict: Verdict, build: Callable[[str], Any] = tiny_model) -> None:
    """Do what `check_family` does, so that what is found is there should it be interrupted."""
    verdict.alone = NOT_ALONE.get(verdict.family, "")
    if verdict.alone:
        return
    try:
        verdict.encoder = build is tiny_model and is_noncausal(verdict.family)
        model = build(verdict.family)
        with torch.no_grad():
            own_logits(model, [START])
    except Exception as error:
        verdict.built = _line(error)
        return
    try:
        engine = LikelihoodEngine(model)
        if isinstance(examine(model, 64), Refused):
            refuse_mute(model)
    except Exception as error:
        verdict.refused = _line(error)
        return
    found = engine.architecture
    verdict.why_padded = found.fallback_reason
    verdict.scores = "padded" if found.fallback_reason else "tree"
    if found.branching is not None:
        verdict.scores = (
            "copied state" if found.branching.trains else "copied state, not in training"
        )
    if found.window is not None and not found.fallback_reason:
        verdict.scores = "windowed tree" if found.passes_window else "tree within the window"
    for name, check in CHECKS.items():
        try:
            fault = check(verdict, model)
        except Exception as error:
            fault = _line(error)
        if fault:
            verdict.faults[name] = fault


def is_noncausal(family: str) -> bool:
    """Say whether a family's model, as its default config has it, lets tokens see later ones."""
    if not is_encoder(tiny_config(family)):
        return False
    ends = (sequence(20, 4), sequence(30, 4))
    try:
        model = tiny_model(family, decoder=False)
        with torch.no_grad():
            one, other = own_logits(model, [START + end for end in ends])
    except AssertionError:  # Reformer insists on being told
        return True
    return not torch.allclose(one[: len(START)], other[: len(START)], atol=1e-4)


def check_scores(verdict: Verdict, model: Any) -> str:
    """Compare sums of log-probabilities."""
    engine = LikelihoodEngine(model)
    with torch.no_grad():
        expected = torch.cat(plain_sums(model, GROUPS))
    off = float((completions_of(engine.score(GROUPS)) - expected).abs().max())
    return "" if off < NATS else f"off by {off:.2g} nats"


def check_all_gradients(verdict: Verdict, model: Any) -> str:
    """Compare the gradients of all weights."""
    model.requires_grad_(True)
    try:
        return _compare_gradients(model)
    finally:
        model.requires_grad_(False)
        model.zero_grad()


def check_answers(verdict: Verdict, model: Any) -> str:
    """Compare greedy answers with the largest logits of plain forwards."""
    model.requires_grad_(False)
    served = examine(model, 64)
    sampling = SamplingConfig(temperature=0, max_new_tokens=NEW_TOKENS)
    options: dict[str, Any] = {
        "stop_ids": frozenset(),
        "sampling": sampling,
        "seeds": list(range(len(PROMPTS))),
        "memory_gib": 1.0,
        "pack_tokens": 256,
    }
    if isinstance(served, Refused):
        verdict.answers, verdict.why_generate = "generate", served.reason
        answers = decode_by_generate(model, PROMPTS, **options)
    else:
        verdict.answers = "decode"
        answers = decode(model, PROMPTS, served=served, **options)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            [logits] = own_logits(model, [[*prompt, *answer.token_ids[:-1]]])
        rows = logits[len(prompt) - 1 :]
        chosen = rows.gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
        behind = float((rows.max(-1).values - chosen).max())
        if behind > 1e-3:
            return f"a token is {behind:.2g} behind the best"
    return ""


def check_published(verdict: Verdict, model: Any) -> str:
    """Publish a random adapter of the default targets, and compare what PEFT makes of it."""
    from peft import PeftModel
    from transformers import AutoConfig

    from macpo.models.classes import auto_class

    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        model.save_pretrained(home / "base")
        tiny_tokenizer().save_pretrained(home / "base")
        agent = make_agent(home / "base", tuning=TuningConfig(rank=2))
        bench = Workbench(home)
        weights = snapshot(bench.train_from(agent).trainable)
        randomise(weights, 2)
        policy = Policy(agent, "positive", bench.write_weights("weights", weights))
        with torch.no_grad():
            [own] = own_logits(bench.pool.load(policy).model, [START])
            [bare] = own_logits(bench.pool.load(Policy(agent, "positive")).model, [START])
        publish(policy, home / "out", bench.pool, "card")
        reader = auto_class(AutoConfig.from_pretrained(home / "base"))
        base = reader.from_pretrained(home / "base", dtype=torch.float32)
        with torch.no_grad(), quiet_peft():
            [theirs] = own_logits(PeftModel.from_pretrained(base, home / "out").eval(), [START])
    off, does = float((theirs - own).abs().max()), float((own - bare).abs().max())
    if not off < 1e-3:
        return f"with PEFT its logits are off by {off:.2g}"
    return "" if does > 1e-2 else "the adapter does nothing"


def check_adapter(verdict: Verdict, model: Any) -> str:
    """Compare the gradients of a LoRA adapter; last, since it changes the model."""
    model.requires_grad_(False)
    adapted = with_adapter(model, TuningConfig(rank=2), verdict.family).eval()
    config = adapted.peft_config["default"]
    names = {name.rpartition(".")[2] for name in config.target_modules}
    verdict.targets = ", ".join(sorted(names | set(config.target_parameters or ())))
    randomise({n: p for n, p in adapted.named_parameters() if p.requires_grad}, 1)
    return _compare_gradients(adapted)


CHECKS: dict[str, Callable[[Verdict, Any], str]] = {
    "log-probs": check_scores,
    "answers": check_answers,
    "full gradients": check_all_gradients,
    "published adapter": check_published,
    "LoRA gradients": check_adapter,
}


def _compare_gradients(model: Any) -> str:
    """Compare gradients of a weighted sum of all log-probabilities."""
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    engine = LikelihoodEngine(model)
    groups = GROUPS
    weights = torch.linspace(-1, 1.5, sum(len(g.completions) for g in groups))
    [pack] = engine.packs(groups)
    ours = _gradients(trains, (engine.score_pack(pack) * weights).sum())
    theirs = _gradients(trains, (torch.cat(plain_sums(model, groups)) * weights).sum())
    worst, name = 0.0, ""
    largest = max(float(g.abs().max()) for g in theirs.values())
    for n, expected in theirs.items():
        off = float((ours[n] - expected).abs().max() / (expected.abs().max() + 1e-3 * largest))
        if not off <= worst:
            worst, name = off, n
    return "" if worst <= GRADIENT else f"{name} is off by {worst:.2g} of its largest"


def _gradients(trains: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(trains.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(trains.items(), found, strict=True)
    }


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text}"[:200]
