"""The engine room: log-probabilities of completions given prompts, packed and prefix-shared."""

from macpo.likelihood.engine import LikelihoodEngine
from macpo.likelihood.groups import Pack, PromptGroup, pack_groups

__all__ = ["LikelihoodEngine", "Pack", "PromptGroup", "pack_groups"]
