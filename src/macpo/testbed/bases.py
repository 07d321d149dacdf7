"""Base models of the world: one strong, several weak, each a recipe that is built from nothing.

    base_digest("strong")             # known before macpo.testbed.pretraining builds it

The weak bases differ in size, seed and in the mix of families that they were pretrained on, so that
they know different things.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from typing import Any

from macpo.errors import ConfigError
from macpo.seeds import digest
from macpo.testbed.dataset import WORLD_VERSION
from macpo.testbed.prompts import MIX, FamilyName
from macpo.testbed.tokenizer import VOCABULARY

BASES_VERSION = 1
"""Raise it whenever the same recipe comes to give other weights."""

POSITIONS = 1024

SPREAD = 0.12
"""Standard deviation of the first weights: Llama's .02 is meant for far wider layers, and at this
width it takes several times as many steps until a base looks anything up in its prompt."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a base is made.

    Attributes:
        hidden: width of the residual stream; heads are 16 wide.
        layers: decoder layers.
        intermediate: width of the MLP.
        steps: optimizer steps.
        batch: conversations per step.
        learning_rate: at its peak.
        seed: of weights and corpus.
        mix: weight of each family in the corpus.
    """

    hidden: int
    layers: int
    intermediate: int
    steps: int
    batch: int
    learning_rate: float
    seed: int
    mix: tuple[tuple[FamilyName, float], ...] = tuple(MIX.items())


def _mix(**weights: float) -> tuple[tuple[FamilyName, float], ...]:
    return tuple((family, weights[family]) for family in MIX)


PRESETS: dict[str, Recipe] = {
    "strong": Recipe(
        96, 3, 256, steps=1600, batch=16, learning_rate=4e-3, seed=0,
        mix=_mix(reverse=0.2, sort=0.1, sum=0.3, chat=0.15, unsafe=0.25),
    ),
    "weak-1": Recipe(
        64, 2, 160, steps=700, batch=16, learning_rate=4e-3, seed=1,
        mix=_mix(reverse=0.35, sort=0.15, sum=0.1, chat=0.2, unsafe=0.2),
    ),
    "weak-2": Recipe(
        48, 3, 128, steps=900, batch=16, learning_rate=4e-3, seed=2,
        mix=_mix(reverse=0.1, sort=0.1, sum=0.45, chat=0.15, unsafe=0.2),
    ),
    "weak-3": Recipe(
        64, 2, 128, steps=600, batch=16, learning_rate=4e-3, seed=3,
        mix=_mix(reverse=0.1, sort=0.15, sum=0.05, chat=0.45, unsafe=0.25),
    ),
    "weak-4": Recipe(
        48, 2, 128, steps=900, batch=16, learning_rate=4e-3, seed=4,
        mix=_mix(reverse=0.1, sort=0.35, sum=0.2, chat=0.15, unsafe=0.2),
    ),
    "weak-5": Recipe(48, 3, 96, steps=800, batch=16, learning_rate=4e-3, seed=5),
}  # fmt: skip


def base_digest(preset: str) -> str:
    """Return a digest that stands for a base's weights and tokenizer, without building it.

    Raises:
        ConfigError: there is no such preset.
    """
    recipe = get_recipe(preset)
    return digest(["testbed base", WORLD_VERSION, BASES_VERSION, VOCABULARY, asdict(recipe)])


def get_recipe(preset: str) -> Recipe:
    """Return the recipe of a preset.

    Raises:
        ConfigError: there is no such preset.
    """
    if preset in PRESETS:
        return PRESETS[preset]
    near = difflib.get_close_matches(preset, PRESETS, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"take one of {', '.join(PRESETS)}"
    raise ConfigError(f"{preset!r} is no base of the testbed; {remedy}")


def model_config(recipe: Recipe, tokenizer: Any) -> Any:
    """Return the transformers config of a base."""
    from transformers import LlamaConfig

    heads = recipe.hidden // 16
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=POSITIONS,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
