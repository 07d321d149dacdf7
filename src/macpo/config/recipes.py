"""Recipes: named sets of defaults over several sections, chosen by `method.recipe`.

What a config says itself stands over its recipe, an agent's own sections over both. Which recipe
for which aim, and what it was measured to do: docs/recipes.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from macpo.config.guard import GuardConfig
from macpo.config.methods import read_method

Recipe = Literal["paper", "stable"]

RECIPES: dict[Recipe, dict[str, Any]] = {
    "paper": {},
    "stable": {
        "dpo.loss": "ipo",
        "dpo.beta": 0.05,
        "dpo.reference": "initial",
        "method.guard": GuardConfig(),
    },
}
"""What each recipe sets, by section and key; `paper` is what the sections say by default."""


def recipe_of(method: Any) -> dict[str, Any]:
    """Return what the recipe of a `method` section sets, but for what its own options leave idle.

    Nothing if it names no recipe that there is, or is faulty, which is said elsewhere.
    """
    name = method.get("recipe") if isinstance(method, Mapping) else getattr(method, "recipe", None)
    values = next((values for known, values in RECIPES.items() if known == name), {})
    if not values:
        return {}
    try:
        idle = read_method(method).idle
    except ValueError:
        return {}
    return {path: value for path, value in values.items() if path not in idle}


def lay_under(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Lay the recipe that a run's config names under what it says.

    Args:
        raw: the config's values: sections as keys with values, or already read.

    Returns:
        The values, and which keys in them are the recipe's.
    """
    values, laid = dict(raw), []
    for path, value in recipe_of(raw.get("method")).items():
        name, key = path.split(".")
        section = values.get(name)
        if isinstance(section, BaseModel):
            if key not in section.model_fields_set:
                values[name] = section.model_copy(update={key: value})
                laid.append(path)
        elif section is None and name not in values:
            values[name] = {key: value}
            laid.append(path)
        elif isinstance(section, Mapping) and key not in section:
            values[name] = {**section, key: value}
            laid.append(path)
    return values, laid


def forget(config: BaseModel, laid: list[str], raw: Mapping[str, Any]) -> None:
    """Make keys that a recipe set count as defaults, not as said, in a config that was read.

    So what was said is written down as it was, and another method of a comparison does not inherit
    the recipe.

    Args:
        config: as `lay_under`'s values were read.
        laid: the recipe's keys in it.
        raw: what was said.
    """
    for path in laid:
        name, key = path.split(".")
        getattr(config, name).__pydantic_fields_set__.discard(key)
        if name not in raw:
            config.__pydantic_fields_set__.discard(name)


def say_recipe(config: BaseModel) -> str:
    """Say what the recipe of a run's config sets, and what the config says otherwise.

    Nothing is said of a recipe that sets nothing.
    """
    method = getattr(config, "method", None)
    sets = recipe_of(method)
    if not sets:
        return ""
    said = []
    for path, value in sets.items():
        name, key = path.split(".")
        found = getattr(getattr(config, name), key)
        shown = "true" if isinstance(found, BaseModel) else found
        own = " (as the config says)" if found != value else ""
        said.append(f"{path} {shown}{own}")
    return f"recipe {getattr(method, 'recipe', '')}: {', '.join(said)}"
