"""Order of the data and learning rate, as pure functions of the step: a resume needs no state."""

from __future__ import annotations

import math

import numpy as np

from macpo.config import OptimizerConfig
from macpo.seeds import stable_seed


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of optimizer steps in one epoch; the last batch may be smaller."""
    return math.ceil(examples / batch_size)


def batch_at(step: int, examples: int, batch_size: int, seed: int) -> list[int]:
    """Return the examples of optimizer step `step` (from 0), reshuffled in every epoch."""
    epoch, number = divmod(step, steps_per_epoch(examples, batch_size))
    order = np.random.Generator(np.random.Philox(stable_seed(seed, "order", epoch)))
    permutation = order.permutation(examples)
    return [int(i) for i in permutation[number * batch_size : (number + 1) * batch_size]]


def learning_rate_at(step: int, steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `steps`.

    Linear warm-up over `warmup_ratio` of the steps, then cosine decay to zero.
    """
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
