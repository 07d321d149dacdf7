"""The Bradley-Terry model, fitted step by step; a resumed fit ends in the same bytes on a CPU.

Order of the data, learning rate and dropout are functions of the step number, so a checkpoint is
weights, Adam's moments and the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from macpo.errors import TrainingError
from macpo.memory import release
from macpo.models.reward import RewardModel, halved_batch
from macpo.records import read_jsonl, write_jsonl
from macpo.reward.config import RewardConfig
from macpo.seeds import stable_seed
from macpo.store import Checkpoints
from macpo.training.schedule import batch_at, learning_rate_at, steps_per_epoch

WEIGHTS, MOMENTS, LOG = "weights.safetensors", "moments.safetensors", "log.jsonl"


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A conversation with the better answer and with the worse one, as token ids."""

    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of the longer one."""
        return max(len(self.chosen), len(self.rejected))


def bradley_terry(chosen: Tensor, rejected: Tensor, centre: float) -> Tensor:
    """Return -log sigmoid(r_c - r_r) + centre * (r_c + r_r)^2 of each pair, unreduced.

    The first term is the Bradley-Terry model's, the second keeps rewards around zero, which
    differences leave open (Eisenstein et al. 2023, arXiv 2312.09244).

    Args:
        chosen: rewards of the better answers, [pairs].
        rejected: rewards of the worse answers, [pairs].
        centre: weight of the second term.
    """
    margin = torch.nn.functional.logsigmoid(chosen - rejected)
    return -margin + centre * (chosen + rejected) ** 2


class RewardTrainer:
    """Trains a reward model in place.

    Args:
        reward: the model, whose parameters that require gradients change.
        pairs: to learn from.
        config: step size and so on.
        checkpoints: where to save, and where an earlier attempt may have saved.
        progress: told after every step: how many are done, of how many, and the step's numbers.
            Where it raises KeyboardInterrupt that step is saved first.
    """

    def __init__(
        self,
        reward: RewardModel,
        pairs: Sequence[EncodedPair],
        config: RewardConfig,
        checkpoints: Checkpoints,
        progress: Callable[[int, int, Mapping[str, float]], None],
    ) -> None:
        self.reward = reward
        self.pairs = pairs
        self.config = config
        self.checkpoints = checkpoints
        self.progress = progress
        self.batch_tokens = config.batch_tokens
        self.trainable: dict[str, torch.nn.Parameter] = {
            name: p for name, p in sorted(reward.model.named_parameters()) if p.requires_grad
        }
        optimizer = config.optimizer
        self.optimizer = torch.optim.AdamW(
            list(self.trainable.values()),
            lr=optimizer.learning_rate,
            weight_decay=optimizer.weight_decay,
        )
        self.steps = optimizer.epochs * steps_per_epoch(len(pairs), optimizer.batch_size)
        self.log: list[dict[str, Any]] = []

    def train(self) -> list[dict[str, Any]]:
        """Train to the end, from a checkpoint if there is one; return a row a step.

        Raises:
            TrainingError: the loss or the gradient is not finite.
            KeyboardInterrupt: from `progress`.
        """
        first = self._resume()
        self.reward.model.train()
        for step in range(first, self.steps):
            row = self._step(step)
            self.log.append(row)
            done = step + 1
            try:
                self.progress(done, self.steps, row)
            except KeyboardInterrupt:
                self.checkpoints.save(done, self._save)  # between two steps: lose nothing
                raise
            if done % self.config.checkpoint_steps == 0 and done < self.steps:
                self.checkpoints.save(done, self._save)
        self.reward.model.eval()
        self.optimizer.zero_grad(set_to_none=True)
        return self.log

    def _step(self, step: int) -> dict[str, Any]:
        """Take one optimizer step; return its row of the log."""
        options = self.config.optimizer
        batch = batch_at(
            step, len(self.pairs), options.batch_size, stable_seed(self.config.seed, "order")
        )
        rate = learning_rate_at(step, self.steps, options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        while (sent := self._backward_if_it_fits(step, batch)) is None:
            self.optimizer.zero_grad(set_to_none=True)  # of the parts that did fit
            release()
        total, right = sent
        norm = float(torch.nn.utils.clip_grad_norm_(self.trainable.values(), options.max_grad_norm))
        if not math.isfinite(total) or not math.isfinite(norm):
            raise TrainingError(
                f"step {step + 1} of {self.steps}: loss {total:g}, gradient norm {norm:g}; not "
                f"finite. Try a lower optimizer.learning_rate (now {options.learning_rate:g}) or "
                "dtype: float32"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "step": step + 1,
            "learning_rate": rate,
            "loss": total,
            "accuracy": right,
            "grad_norm": norm,
        }

    def _backward_if_it_fits(self, step: int, batch: Sequence[int]) -> tuple[float, float] | None:
        """Send a batch's loss back; return it, with the share of pairs that are told apart.

        None if memory ran out: parts are smaller from then on.
        """
        total, right = 0.0, 0.0
        device = self.reward.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(stable_seed(self.config.seed, "dropout", step))
            for part in self._parts(batch):
                pairs = [self.pairs[i] for i in part]
                try:
                    loss, told = self._send_back(pairs, len(batch))
                except Exception as error:
                    less = halved_batch(error, [p.chosen + p.rejected for p in pairs])
                    if less is None:
                        raise
                    self.batch_tokens = less
                    return None
                total += loss
                right += told / len(batch)
        return total, right

    def _send_back(self, pairs: Sequence[EncodedPair], examples: int) -> tuple[float, float]:
        """Send the loss of some of a batch's pairs back.

        Returns:
            Their share of the batch's loss, and how many of them are told apart.
        """
        chosen, rejected = self._rewards(pairs)
        loss = bradley_terry(chosen, rejected, self.config.centre).sum() / examples
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), float((chosen > rejected).sum())

    def _rewards(self, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
        """Return the rewards of better and worse answers, [pairs] each."""
        device = self.reward.model.device.type
        low = self.config.dtype == "bfloat16"
        with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
            rows = [*(p.chosen for p in pairs), *(p.rejected for p in pairs)]
            rewards = self.reward.forward(rows).float()
        return rewards[: len(pairs)], rewards[len(pairs) :]

    def _parts(self, batch: Sequence[int]) -> Iterator[list[int]]:
        """Cut a batch into parts of at most `batch_tokens`, pairs of similar length together."""
        part: list[int] = []
        for i in sorted(batch, key=lambda i: self.pairs[i].tokens):
            if part and 2 * (len(part) + 1) * self.pairs[i].tokens > self.batch_tokens:
                yield part
                part = []
            part.append(i)
        if part:
            yield part

    def _save(self, folder: Path) -> None:
        """Write a checkpoint into an empty folder."""
        weights = {n: p.detach().cpu().contiguous() for n, p in self.trainable.items()}
        moments = {
            f"{key}/{name}": torch.as_tensor(value).detach().cpu().contiguous()
            for name, parameter in self.trainable.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        save_file(weights, folder / WEIGHTS)
        save_file(moments, folder / MOMENTS)
        write_jsonl(folder / LOG, self.log)

    def _resume(self) -> int:
        """Load the newest checkpoint; return the number of steps already taken."""
        found = self.checkpoints.latest()
        if found is None:
            return 0
        step, folder = found
        weights, moments = load_file(folder / WEIGHTS), load_file(folder / MOMENTS)
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(weights[name])
                state = {
                    key: moments[f"{key}/{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}/{name}" in moments
                }
                if state:  # without a gradient AdamW kept none
                    moved = {
                        key: value if key == "step" else value.to(parameter.device)
                        for key, value in state.items()
                    }
                    self.optimizer.state[parameter] = moved
        self.log = list(read_jsonl(folder / LOG))
        return step
