"""What can be told of an agent's model without its weights: whether it will do for the run.

`macpo plan` and the start of a run ask here, so that nobody is refused after others have worked
for hours. What only weights can tell, `PolicyPool` finds out when it loads them: a run loads
every base before an agent's first stage (`macpo.execution.local`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from macpo.adapters import with_adapter
from macpo.agents import Agent
from macpo.errors import ModelError
from macpo.likelihood.architecture import refuse_unusable
from macpo.likelihood.recompute import recomputable_layers
from macpo.models.folders import CONFIG, check_weights, read_config
from macpo.models.loading import empty_model
from macpo.models.quantised import refuse_divided, refuse_quantised, stays_quantised
from macpo.models.quantising import refuse_unmade
from macpo.probe import SLIDING, setting

POSITIONS = re.compile(r"(^|[._])(wpe|pos\w*|\w+_pos\w*)([._]|$)")
"""What tables of positions are called: `wpe`, `embed_positions`, `position_embeddings`."""

OFFSET = 8
"""By how many rows at most such a table is longer than the positions it serves (OPT: 2)."""


def check_agent(agent: Agent, *, recomputes: bool = False, divided: bool = False) -> None:
    """Refuse a model that can be seen not to do; one whose config is not here passes.

    Args:
        agent: whose model is looked at.
        recomputes: its layers are to be computed again (`engine.checkpoint_activations`).
        divided: its weights are to be divided among processes (`engine.sharding`).

    Raises:
        ModelError: its weights are quantised in a way that will not do, the engine cannot score
            with it or compute its layers again, its targets do not fit it, or prompts and answers
            may have more tokens than it has positions.
    """
    if agent.base.quantize is not None:
        _check_quantising(agent)
    if not (Path(agent.base.location) / CONFIG).is_file():
        return
    folder = Path(agent.base.location)
    config = read_config(folder, with_code=agent.base.trust_remote_code)
    try:
        check_weights(folder)
        made = agent.base.quantize is not None
        whole = agent.tuning.kind == "full"
        refuse_quantised(config, agent.base.name, whole=whole, again=made)
        if divided:
            refuse_divided(config, agent.base.name)
        _check_windows(config, agent.base.name)
        model = empty_model(agent.base)
        refuse_unusable(model)
        if recomputes:
            recomputable_layers(model)
        _check_positions(model, agent)
        if agent.tuning.kind == "lora":
            with_adapter(model.requires_grad_(False), agent.tuning, agent.base.name)
    except ModelError as error:
        raise ModelError(f"{agent.name}: {error}") from error


def _check_quantising(agent: Agent) -> None:
    """Refuse to quantise a base while it loads where that cannot be done."""
    try:
        refuse_unmade(agent.base.name)
    except ModelError as error:
        raise ModelError(f"{agent.name}: {error}") from error


def _check_windows(config: Any, name: str) -> None:
    """Refuse a config whose layers slide over a window of no size."""
    text = config.get_text_config()
    slides = SLIDING in (setting(text, "layer_types", None) or ())
    if slides and not isinstance(setting(text, "sliding_window", 0), int):
        raise ModelError(
            f"{name}: its config lists layers of {SLIDING} and no sliding_window; fetch the config "
            "again, or give it the window that the model was trained with"
        )


def _check_positions(model: Any, agent: Agent) -> None:
    """Refuse limits beyond a table of positions."""
    known = positions(model)
    longest = agent.limits.prompt_tokens + agent.limits.response_tokens
    if known is not None and longest > known:
        raise ModelError(
            f"{agent.base.name} has {known} positions, but limits.prompt_tokens + "
            f"limits.response_tokens are {longest} tokens; lower these to {known} in all"
        )


def positions(model: Any) -> int | None:
    """Return how many positions a model has a table of; None if it computes them."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    tables = {
        name.removesuffix(".weight"): tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.dim() == 2 and POSITIONS.search(name.removesuffix(".weight"))
    }
    if any(limit <= len(table) <= limit + OFFSET for table in tables.values()):
        return limit
    return None


def quantised(agent: Agent) -> bool:
    """Tell whether an agent's weights are quantised in memory, as far as its config is here."""
    if agent.base.quantize is not None:
        return True
    folder = Path(agent.base.location)
    if not (folder / CONFIG).is_file():
        return False
    config = read_config(folder, with_code=agent.base.trust_remote_code)
    return stays_quantised(config, agent.base.name)
