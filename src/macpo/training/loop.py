"""The training loop: whatever is trained is trained here.

For each optimizer step: the batch's examples are packed, each pack is forwarded and its share of
the batch's loss is sent back, gradients are clipped, AdamW steps. The gradient is that of the mean
loss over the whole batch, whatever the packing.

Several ranks share out each batch's examples, of as many tokens each, add up their gradients once
per step and then take the same step: all hold the same weights.

The state after n steps is a function of the start, the data and the seed alone: order and learning
rate are computed from n, dropout is seeded from n (and the rank), and a checkpoint holds the
weights, AdamW's two moments and the log. So a run that was killed continues to the same bytes (on
one machine's CPU, with as many ranks).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from macpo.config import EngineConfig, OptimizerConfig
from macpo.errors import TrainingError
from macpo.likelihood import LikelihoodEngine, Pack, PromptGroup
from macpo.memory import release
from macpo.policies import LoadedPolicy, odd_weights, restore, save_weights
from macpo.progress import ProgressCallback
from macpo.ranks import ALONE, Ranks, shares
from macpo.records import read_jsonl, write_jsonl
from macpo.seeds import stable_seed
from macpo.store import Checkpoints
from macpo.training.objectives import Objective
from macpo.training.schedule import batch_at, learning_rate_at, steps_per_epoch

SHOWN = ("loss", "dpo_loss", "sft_loss", "margin", "chosen_logratio", "rejected_logratio")
"""What a stage's meta has of the log."""

WEIGHTS, MOMENTS, LOG = "weights.safetensors", "moments.safetensors", "log.jsonl"


class Trainer:
    """Trains a policy in place.

    Args:
        policy: whose trainable parameters change.
        objective: examples and loss.
        config: optimizer settings.
        seed: decides order and dropout.
        engine: layout of the work, and how often to save a checkpoint.
        checkpoints: where to save, and where an earlier attempt may have saved.
        progress: told after every step.
        ranks: who trains together, each the same policy.
    """

    def __init__(
        self,
        policy: LoadedPolicy,
        objective: Objective,
        config: OptimizerConfig,
        *,
        seed: int,
        engine: EngineConfig,
        checkpoints: Checkpoints,
        progress: ProgressCallback,
        ranks: Ranks = ALONE,
    ) -> None:
        self.policy = policy
        self.objective = objective
        self.config = config
        self.seed = seed
        self.checkpoint_steps = engine.checkpoint_steps
        self.checkpoints = checkpoints
        self.progress = progress
        self.ranks = ranks
        self.engine: LikelihoodEngine = policy.engine(
            engine.pack_tokens, ranks, checkpoint_activations=engine.checkpoint_activations
        )
        self.parameters = list(policy.trainable.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        examples = len(objective.groups)
        self.steps = config.epochs * steps_per_epoch(examples, config.batch_size)
        self.log: list[dict[str, Any]] = []

    def train(self) -> list[dict[str, Any]]:
        """Train to the end, from a checkpoint if there is one.

        Returns:
            One row per optimizer step: step, learning_rate, loss, grad_norm, and the means that
            the objective shows.

        Raises:
            TrainingError: the loss or the gradient is not finite, or a checkpoint does not fit.
            RanksError: a rank was lost, or its weights have become others.
        """
        first = self._resume()
        started, tokens = time.monotonic(), 0
        self._set_dropout(training=True)
        try:
            for step in range(first, self.steps):
                row, step_tokens = self._step(step)
                self.log.append(row)
                tokens += step_tokens
                rate = tokens / max(time.monotonic() - started, 1e-9)
                shown = {k: v for k, v in row.items() if k in ("loss", "margin")}
                if self._asked_to_stop(step + 1, **shown, tokens_per_second=rate):
                    self._checkpoint(step + 1)  # between two steps: lose nothing
                    raise KeyboardInterrupt
                if (step + 1) % self.checkpoint_steps == 0 and step + 1 < self.steps:
                    self._checkpoint(step + 1)
        finally:
            self._set_dropout(training=False)
            self.optimizer.zero_grad(set_to_none=True)
        return self.log

    def _asked_to_stop(self, done: int, **shown: float) -> bool:
        """Tell how far the training is; return whether any rank was asked to stop."""
        try:
            self.progress(done, self.steps, **shown)
        except KeyboardInterrupt:
            return any(self.ranks.gather(True))
        return any(self.ranks.gather(False))

    def _step(self, step: int) -> tuple[dict[str, Any], int]:
        """Take one optimizer step; return its log row and the number of tokens forwarded."""
        batch = batch_at(
            step, len(self.objective.groups), self.config.batch_size, stable_seed(self.seed, "data")
        )
        rate = learning_rate_at(step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals, tokens = self._add_up(*self._backward(step, batch))
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        if not math.isfinite(totals["loss"]) or not math.isfinite(norm):
            self._refuse_odd_weights()
            raise TrainingError(
                f"step {step + 1} of {self.steps}: loss {totals['loss']:g}, gradient norm "
                f"{norm:g}; not finite. Try a lower learning_rate (now "
                f"{self.config.learning_rate:g}), dtype: float32, or look for odd rows in the data"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"step": step + 1, "learning_rate": rate, **totals, "grad_norm": norm}, tokens

    def _backward(self, step: int, batch: Sequence[int]) -> tuple[dict[str, float], int]:
        """Send this rank's share of a batch's loss back.

        Returns:
            Its share of the batch's loss and of the means to be shown, and its number of tokens.
        """
        dealt = shares([self.objective.groups[i].tokens for i in batch], self.ranks.size)
        mine = [batch[place] for place in dealt[self.ranks.rank]]
        spare = min((self.objective.groups[i] for i in batch), key=lambda g: g.tokens)
        while (sent := self._backward_if_it_fits(step, mine, len(batch), spare)) is None:
            self.optimizer.zero_grad(set_to_none=True)  # of the packs that did fit
            release()
        return sent

    def _backward_if_it_fits(
        self, step: int, mine: Sequence[int], examples: int, spare: PromptGroup
    ) -> tuple[dict[str, float], int] | None:
        """Do what `_backward` says, or give way to want of memory half-way and return None.

        Args:
            step: the optimizer step, which decides what dropout is drawn from.
            mine: this rank's examples.
            examples: how many the whole batch has.
            spare: see `LikelihoodEngine.fillers`.
        """
        totals: dict[str, float] = {"loss": 0.0}
        tokens = 0
        device = self.engine.causal_lm.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self._dropout_seed(step))
            packs = self.engine.packs([self.objective.groups[i] for i in mine])
            fillers = self.engine.fillers(packs, spare)
            for pack in packs:
                indices = [mine[i] for i in pack.indices]
                try:
                    shown = self._send_back(pack, indices, examples, step / self.steps)
                except Exception as error:
                    if not self.engine.gives_way(error, pack):
                        raise
                    return None
                for name, value in shown.items():
                    totals[name] = totals.get(name, 0.0) + value
                tokens += pack.tokens
            for filler in fillers:
                nothing = 0.0 * self.engine.score_pack(filler).sum()
                nothing.backward()  # type: ignore[no-untyped-call]
        return totals, tokens

    def _send_back(
        self, pack: Pack, indices: Sequence[int], examples: int, progress: float
    ) -> dict[str, float]:
        """Send a pack's share of the loss back; return its shares of loss and means."""
        scored = self.objective.forward(self.engine, pack, indices, progress)
        loss = scored.losses.sum() / examples
        loss.backward()  # type: ignore[no-untyped-call]
        shown = {name: values.sum().item() / examples for name, values in scored.shown.items()}
        return {"loss": loss.item(), **shown}

    def _dropout_seed(self, step: int) -> int:
        """Return what dropout is drawn from: no two ranks drop the same places of their rows."""
        rank = () if self.ranks.size == 1 else (self.ranks.rank, self.ranks.size)
        return stable_seed(self.seed, "dropout", step, *rank)

    def _add_up(self, totals: dict[str, float], tokens: int) -> tuple[dict[str, float], int]:
        """Add up gradients, totals and tokens over the ranks.

        A parameter that has no gradient on any rank (an expert without tokens) keeps none, for
        AdamW passes over it then.
        """
        if self.ranks.size == 1:
            return totals, tokens
        missing = [i for i, p in enumerate(self.parameters) if p.grad is None]
        said = self.ranks.gather([totals, tokens, missing])
        nowhere = set.intersection(*(set(absent) for _, _, absent in said))
        used = [p for i, p in enumerate(self.parameters) if i not in nowhere]
        for parameter in used:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = gradient.contiguous()
        self.ranks.sum([p.grad for p in used if p.grad is not None])
        names = dict.fromkeys(name for theirs, _, _ in said for name in theirs)
        summed = {name: sum(theirs.get(name, 0.0) for theirs, _, _ in said) for name in names}
        return summed, sum(read for _, read, _ in said)

    def _checkpoint(self, done: int) -> None:
        """Save the state after `done` steps, which is the same on all ranks."""
        digest = 0 if self.ranks.size == 1 else bits_of(self.parameters)
        self.checkpoints.save(done, self._save, digest)

    def _refuse_odd_weights(self) -> None:
        """Say so where numbers that are not finite come of the base itself.

        Raises:
            TrainingError: a weight that does not train is NaN or infinite.
        """
        if fault := odd_weights(self.policy.model, but=self.policy.trainable):
            raise TrainingError(f"the loss is not finite, since {fault}")

    def _set_dropout(self, *, training: bool) -> None:
        """Turn LoRA's dropout on or off; the base model never has any."""
        for name, module in self.policy.model.named_modules():
            if ".lora_dropout." in name:
                module.train(training)

    def _save(self, folder: Path) -> None:
        """Write a checkpoint into an empty folder."""
        save_weights(self.policy.trainable, folder / WEIGHTS)
        save_file(self._moments(), folder / MOMENTS)
        write_jsonl(folder / LOG, self.log)

    def _moments(self) -> dict[str, Tensor]:
        """Return AdamW's state as named tensors."""
        named = {}
        for name, parameter in self.policy.trainable.items():
            for key, value in self.optimizer.state[parameter].items():
                named[f"{key}/{name}"] = torch.as_tensor(value).to("cpu", copy=True).contiguous()
        return named

    def _resume(self) -> int:
        """Load the newest checkpoint; return the number of steps already taken."""
        found = self.checkpoints.latest()
        if found is None:
            return 0
        step, folder = found
        restore(self.policy.trainable, load_file(folder / WEIGHTS))
        self._restore_moments(load_file(folder / MOMENTS))
        self.log = list(read_jsonl(folder / LOG))
        return step

    def _restore_moments(self, named: Mapping[str, Tensor]) -> None:
        for name, parameter in self.policy.trainable.items():
            found = {key: named.get(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            state = {key: value for key, value in found.items() if value is not None}
            if not state:
                continue  # it never had a gradient (an expert without tokens), so AdamW kept none
            if len(state) < len(found):
                lost = next(key for key, value in found.items() if value is None)
                raise TrainingError(
                    f"the checkpoint lacks {lost} of {name}: another version wrote it; remove the "
                    "stage's folder below store/.partial to train it from the start"
                )
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key].to(parameter.device)
            self.optimizer.state[parameter] = state


def bits_of(parameters: Iterable[Tensor]) -> int:
    """Return a sum over the bits of parameters, which is another one if any one bit is."""
    total = 0
    for parameter in parameters:
        whole = torch.int16 if parameter.element_size() == 2 else torch.int32
        total += int(parameter.detach().contiguous().view(whole).sum(dtype=torch.int64))
    return total


def summary(log: list[dict[str, Any]]) -> dict[str, float]:
    """Return the means over the last quarter of a log, for a stage's meta."""
    tail = log[-max(1, len(log) // 4) :]
    names = [n for n in SHOWN if all(n in row for row in tail)]
    return {n: sum(float(row[n]) for row in tail) / len(tail) for n in names}
