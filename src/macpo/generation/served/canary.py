"""The canary: are a stage's first answers those of the policy that is meant to answer?

An engine that ignored an adapter (vLLM says nothing of module names that do not match), took
another one, another base or another dtype answers all the same. It also says how probable it found
its tokens; macpo's own likelihood engine says the same of the policy, and the two have to agree.

Two things are held against them. The log-probabilities may differ by rounding, by how much was
measured (docs/vllm.md). And under LoRA they must not fit the bare base better than the policy: so
an adapter that was ignored is found also where it does less than what rounding may do.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macpo.likelihood import PromptGroup

if TYPE_CHECKING:
    from macpo.policies import LoadedPolicy

ANSWERS = 8
"""How many of a stage's first answers are compared."""

MOST = {"float32": 0.005, "bfloat16": 0.1}
"""The mean difference of a token's log-probability that rounding may make, in nats, by dtype."""

FITS_BETTER = 0.8
"""An adapter was ignored if the bare base's differences are below that share of the policy's.

Under the right policy rounding and the adapter both add to the differences from the base.
"""


@dataclass(frozen=True, slots=True)
class Compared:
    """How far an engine's log-probabilities are from macpo's, in nats per token, as a mean.

    Attributes:
        tokens: how many were compared.
        policy: from those of the policy.
        base: from those of its bare base; None without an adapter.
    """

    tokens: int
    policy: float
    base: float | None

    def fault(self, dtype: str) -> str | None:
        """Say what is wrong, as half a sentence; None if they agree."""
        if self.base is not None and self.base < FITS_BETTER * self.policy:
            return (
                f"log-probabilities of its first {self.tokens} tokens are {self.policy:.2g} nats "
                f"off the policy's in the mean, and {self.base:.2g} off the bare base's: the "
                "adapter was ignored, as happens where its layers have other names there"
            )
        if not self.policy <= MOST[dtype]:
            return (
                f"log-probabilities of its first {self.tokens} tokens are {self.policy:.2g} nats "
                f"off the policy's in the mean, where {dtype} explains {MOST[dtype]:g}: it answers "
                "with other weights, in another dtype, or reads prompts in another way"
            )
        return None


def compare(
    loaded: LoadedPolicy,
    pack_tokens: int,
    prompts: Sequence[tuple[int, ...]],
    answers: Sequence[tuple[int, ...]],
    told: Sequence[Sequence[float]],
) -> Compared:
    """Compare log-probabilities that an engine told with those of a policy.

    Args:
        loaded: the policy; under LoRA its bare base is compared too.
        pack_tokens: see `macpo.config.EngineConfig`.
        prompts: token ids.
        answers: token ids, one answer for each prompt, none empty.
        told: of each answer's tokens, in nats.
    """
    theirs = [value for values in told for value in values]
    groups = [PromptGroup(p, (a,)) for p, a in zip(prompts, answers, strict=True)]
    policy = _apart(theirs, _scored(loaded, pack_tokens, groups))
    base = None
    if hasattr(loaded.model, "disable_adapter"):
        with _without_adapter(loaded.model):
            base = _apart(theirs, _scored(loaded, pack_tokens, groups))
    return Compared(len(theirs), policy, base)


def _without_adapter(model: Any) -> AbstractContextManager[Any]:
    """Return a context in which a PEFT model is its bare base."""
    context: AbstractContextManager[Any] = model.disable_adapter()
    return context


def _scored(loaded: LoadedPolicy, pack_tokens: int, groups: Sequence[PromptGroup]) -> list[float]:
    """Return the log-probability of every answer's tokens, in the order of the groups."""
    import torch

    engine = loaded.engine(pack_tokens)
    found: list[list[float]] = [[] for _ in groups]
    with torch.inference_mode():
        for pack in engine.packs(groups):
            tokens = iter(engine.score_tokens(pack)[0].tolist())
            for index, group in zip(pack.indices, pack.groups, strict=True):
                found[index] = [next(tokens) for _ in group.completions[0]]
    return [value for values in found for value in values]


def _apart(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the mean absolute difference."""
    return sum(abs(a - b) for a, b in zip(theirs, ours, strict=True)) / max(1, len(theirs))
