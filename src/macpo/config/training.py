"""How policies are trained: the sections of SFT and of DPO rounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from macpo.config.base import Section
from macpo.config.values import Count, Epochs, NonNegative, Positive, Ratio

Loss = Literal["sigmoid", "ipo", "ipo-mean", "sppo", "apo-zero", "apo-down"]
"""The losses that contrast chosen and rejected, see `macpo.losses`."""

OF_CONTRAST = ("dpo.loss", "dpo.label_smoothing", "dpo.end_of_turn")
"""Keys that act on the DPO term alone."""

Trained = TypeVar("Trained", bound="OptimizerConfig")


class OptimizerConfig(Section):
    """One optimisation: AdamW, cosine decay to zero, clipping by the global gradient norm."""

    epochs: Epochs
    learning_rate: Positive
    batch_size: Count
    warmup_ratio: Ratio = 0.0
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0


class SFTConfig(OptimizerConfig):
    """Supervised fine-tuning of a positive policy on answers."""

    epochs: Epochs = 3
    learning_rate: Positive = 5e-5
    batch_size: Count = 32


class NegativeSFTConfig(OptimizerConfig):
    """Supervised fine-tuning of a negative policy, which starts from the positive one."""

    epochs: Epochs = 1
    learning_rate: Positive = 5e-5
    batch_size: Count = 32


class DPOConfig(OptimizerConfig):
    """One round of L_DPO(beta) + gamma * L_SFT(chosen).

    `loss` is what stands for L_DPO: the paper's `sigmoid`; or one that is bounded, so that it does
    not pull chosen and rejected apart for ever: `ipo`, whose target is a difference of log-ratios
    of 1 / (2 beta) nats (`ipo-mean`: nats per token), `sppo`, `apo-zero`, `apo-down`.
    `label_smoothing` is the share of pairs that `sigmoid` takes for wrongly labelled, which bounds
    it, too. `start` says whether a round trains from what the last round left, `previous`, or from
    the policy before round 1, `initial`, by the pairs of this round alone. After each round the
    weights go back the share `anchor` of the way to the policy before round 1. With `end_of_turn:
    mask` the token that ends an answer counts in L_SFT alone.
    """

    added: ClassVar[frozenset[str]] = frozenset({"loss", "label_smoothing", "end_of_turn"})

    epochs: Epochs = 1
    learning_rate: Positive = 1e-5
    batch_size: Count = 16
    beta: Positive = 0.1
    gamma: NonNegative = 0.2
    reference: Literal["previous", "initial", "base"] = "previous"
    start: Literal["previous", "initial"] = "previous"
    anchor: Annotated[float, Field(ge=0, le=1)] = 0.0
    end_of_turn: Literal["keep", "mask"] = "keep"
    loss: Loss = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> DPOConfig:
        faults = list(self.faults())
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def identity(self) -> dict[str, Any]:
        """See `Section.identity`; where a stage starts and goes back to, it says itself.

        So do the scores that it reads: who made them is the reference, whatever word named it.
        """
        said = ("start", "anchor")
        values = {name: value for name, value in super().identity().items() if name not in said}
        return {**values, "reference": "previous"}  # as in the keys of stages that are finished

    def faults(self) -> Iterator[str]:
        """Yield what cannot take effect together."""
        if self.label_smoothing and self.loss != "sigmoid":
            yield (
                f"label_smoothing is for loss: sigmoid, and has no effect on {self.loss}; remove "
                "the one or the other"
            )
        if self.anchor == 1:
            yield (
                "anchor 1 takes every round all the way back, so that nothing is learned; give a "
                "share below 1, such as 0.2"
            )
        if self.start == "initial" and not self.anchor and "anchor" in self.model_fields_set:
            yield (
                "anchor 0 is no anchor, and with start: initial every round begins at the initial "
                "policy as it is; remove anchor"
            )


def lay_over(run: Trained, agent: Trained | None) -> Trained:
    """Lay what an agent's section says over the run's, key by key."""
    if agent is None:
        return run
    return run.model_copy(update={key: getattr(agent, key) for key in agent.model_fields_set})
