"""The training loop, on accelerate: whatever is trained is trained here.

For each optimizer step: the batch's examples are packed, each pack is forwarded and its share of
the batch's loss is sent back, gradients are clipped, AdamW steps. The gradient is that of the mean
loss over the whole batch, whatever the packing.

The state after n steps is a function of the start, the data and the seed alone: order and learning
rate are computed from n, dropout is seeded from n, and a checkpoint holds the weights, AdamW's two
moments and the log. So a run that was killed continues to the same bytes (on one machine's CPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from macpo.config import EngineConfig, OptimizerConfig
from macpo.errors import TrainingError
from macpo.likelihood import LikelihoodEngine
from macpo.policies import LoadedPolicy, restore, save_weights
from macpo.progress import ProgressCallback
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
    ) -> None:
        self.policy = policy
        self.objective = objective
        self.config = config
        self.seed = seed
        self.checkpoint_steps = engine.checkpoint_steps
        self.checkpoints = checkpoints
        self.progress = progress
        self.engine: LikelihoodEngine = policy.engine(engine.pack_tokens)
        self.parameters = list(policy.trainable.values())
        self.accelerator = Accelerator(cpu=self.engine.causal_lm.device.type == "cpu")
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
                try:
                    self.progress(step + 1, self.steps, **shown, tokens_per_second=rate)
                except KeyboardInterrupt:  # asked to stop, between two steps: lose nothing
                    self.checkpoints.save(step + 1, self._save)
                    raise
                if (step + 1) % self.checkpoint_steps == 0 and step + 1 < self.steps:
                    self.checkpoints.save(step + 1, self._save)
        finally:
            self._set_dropout(training=False)
            self.optimizer.zero_grad(set_to_none=True)
        return self.log

    def _step(self, step: int) -> tuple[dict[str, Any], int]:
        """Take one optimizer step; return its log row and the number of tokens forwarded."""
        batch = batch_at(
            step, len(self.objective.groups), self.config.batch_size, stable_seed(self.seed, "data")
        )
        rate = learning_rate_at(step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, float] = {"loss": 0.0}
        tokens = 0
        device = self.engine.causal_lm.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(stable_seed(self.seed, "dropout", step))
            for pack in self.engine.packs([self.objective.groups[i] for i in batch]):
                indices = [batch[i] for i in pack.indices]
                scored = self.objective.forward(self.engine, pack, indices, step / self.steps)
                loss = scored.losses.sum() / len(batch)
                self.accelerator.backward(loss)
                totals["loss"] += loss.item()
                for name, values in scored.shown.items():
                    totals[name] = totals.get(name, 0.0) + values.sum().item() / len(batch)
                tokens += pack.tokens
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm))
        if not math.isfinite(totals["loss"]) or not math.isfinite(norm):
            raise TrainingError(
                f"step {step + 1} of {self.steps}: loss {totals['loss']:g}, gradient norm "
                f"{norm:g}; not finite. Try a lower learning_rate (now "
                f"{self.config.learning_rate:g}), dtype: float32, or look for odd rows in the data"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"step": step + 1, "learning_rate": rate, **totals, "grad_norm": norm}, tokens

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


def summary(log: list[dict[str, Any]]) -> dict[str, float]:
    """Return the means over the last quarter of a log, for a stage's meta."""
    tail = log[-max(1, len(log) // 4) :]
    names = [n for n in SHOWN if all(n in row for row in tail)]
    return {n: sum(float(row[n]) for row in tail) / len(tail) for n in names}
