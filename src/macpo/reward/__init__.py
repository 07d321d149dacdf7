"""Training a reward model on preference pairs: `macpo reward train CONFIG`.

The loop is our own and short, for three reasons: it reads conversations by the very function with
which the evaluator scores them, so that training and scoring cannot differ in a template or a BOS;
it is resumed in the same bytes, as all training here; and it needs no further package.

| module | what |
|---|---|
| config | what a reward model's YAML says |
| training | from a config to a model folder with its card |
| loop | Bradley-Terry, step by step, with checkpoints |
"""

from macpo.reward.config import RewardConfig, load_reward_config
from macpo.reward.training import TrainedReward, train_reward

__all__ = ["RewardConfig", "TrainedReward", "load_reward_config", "train_reward"]
