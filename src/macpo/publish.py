"""What a run hands out: ordinary PEFT folders (or full models), and merged models.

RUN/final/student     adapter_model.safetensors, adapter_config.json, tokenizer, README.md
RUN/final/<teacher>   the same; a teacher that trained whole is a full model folder
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from macpo.adapters import quiet_peft, write_adapter
from macpo.agents import Agent, Policy
from macpo.attention import base_model
from macpo.errors import DamagedError, ModelError, StoreError
from macpo.metrics import in_order
from macpo.models import hub
from macpo.models.classes import auto_class, copy_processors
from macpo.models.folders import ADAPTER_CONFIG, CONFIG, read_config
from macpo.models.merging import read_adapter
from macpo.models.quantised import dequantised, read_model
from macpo.models.quantising import NOTE, noted, options, write_note
from macpo.policies import LoadedPolicy, PolicyPool
from macpo.probe import agree, first_line, own_logits, probe_ids, relative_error
from macpo.store import MANIFEST, new_directory, verify
from macpo.store.atomic import remove_tree
from macpo.words import in_markdown

CHECKED_TOKENS = 24
OF_THIS_MACHINE = ("is_local", "local_files_only", "name_or_path")
"""What transformers writes into tokenizer_config.json of where a tokenizer was read from."""


def publish(
    policy: Policy,
    folder: Path,
    policies: PolicyPool,
    card: str,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Write a trained policy as a folder that PEFT, transformers and vLLM load.

    What is handed out has been tried: PEFT loads an adapter and gives the policy's logits. An equal
    folder that is there already, undamaged to the last byte, is left as it is; another one is
    replaced.

    Args:
        policy: a policy with weights.
        folder: where it goes, for example `RUN/final/student`.
        policies: to load the policy.
        card: text of the model card.
        note: is told of a folder that was damaged.

    Raises:
        StoreError: it cannot be written.
        ModelError: others could not use it.
    """
    fields = {"policy": policy.name, "weights": policy.weights_key, "card": card}
    if _is_published(folder, fields, note):
        return
    with new_directory(folder, fields) as partial:
        if policy.agent.tuning.kind == "lora":
            loaded = policies.take(policy)
            base = policy.agent.base
            revision = base.revision if base.hub_name is not None else None
            write_adapter(
                loaded.model, partial, base=base_reference(policy.agent), revision=revision
            )
            if base.quantize is not None:
                write_note(partial, policy.agent.dtype)
            _check_adapter(loaded, policy.agent, partial)
        else:
            policies.load(policy).model.save_pretrained(partial)
            copy_processors(Path(policy.agent.base.location), partial)
        _save_tokenizer(policies.chat(policy.agent).tokenizer, partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        remove_tree(folder)


def merge_adapter(adapter: Path, output: Path) -> None:
    """Merge a published adapter into its base model and write the full model.

    Args:
        adapter: a folder that `publish` wrote, for example `RUN/final/student`.
        output: must not exist.

    Raises:
        StoreError: `output` exists or cannot be written.
        ModelError: `adapter` holds no policy, or its base model cannot be loaded.
    """
    if output.exists():
        raise StoreError(f"{output} exists already; choose another place or move it away")
    if not (adapter / ADAPTER_CONFIG).is_file():
        if (adapter / "config.json").is_file():
            raise ModelError(f"{adapter} is a full model already: there is nothing to merge")
        raise ModelError(f"{adapter} holds no adapter_config.json; give a folder of RUN/final/")
    base, revision = _base_of(adapter)
    from peft import PeftModel
    from transformers import AutoConfig, AutoTokenizer

    try:
        its_config = AutoConfig.from_pretrained(base, revision=revision or "main")
        model = read_model(base, its_config, base, revision=revision or "main", **noted(adapter))
        model = dequantised(model, base)
        with quiet_peft():
            merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        tokenizer = AutoTokenizer.from_pretrained(str(adapter))
    except ModelError:
        raise
    except Exception as error:  # a folder that somebody changed fails in as many ways as there are
        raise ModelError(
            f"{adapter}: cannot be merged into its base {base} ({first_line(error)}); bring the "
            "base back, or run the config again, which publishes the adapter anew"
        ) from error
    with new_directory(output, None) as partial:
        merged.save_pretrained(partial)
        found = Path(base) if Path(base).is_dir() else hub.cached_snapshot(base, revision)
        if found is not None:
            copy_processors(found, partial)
        _save_tokenizer(tokenizer, partial)


def _base_of(adapter: Path) -> tuple[str, str | None]:
    """Return what an adapter goes over, and the revision, of a folder that is whole.

    Raises:
        ModelError: it does not say, or its weights are pickled.
        DamagedError: it is not as `publish` wrote it.
    """
    if (adapter / MANIFEST).is_file():
        try:
            verify(adapter)
        except DamagedError as error:
            raise DamagedError(
                f"{error.fault}; run the config again, which publishes it anew"
            ) from error
    config = read_adapter(adapter)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise ModelError(
            f"{adapter}: {ADAPTER_CONFIG} names no base (base_model_name_or_path: "
            f"{base!r:.80}); write there which model it was trained over"
        )
    return base, revision


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer, without what transformers notes of where it was read from."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: value for name, value in config.items() if name not in OF_THIS_MACHINE}
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def model_card(
    policy: Policy,
    run: str,
    method: str,
    rounds: int,
    metrics: dict[str, float],
    caution: str = "",
) -> str:
    """Return a short model card (Markdown with the hub's front matter).

    Args:
        policy: what it is about.
        run: the run's name.
        method: by which it was trained.
        rounds: how many of them it went through.
        metrics: after the last one.
        caution: what has to be known of the answers that it learned from.
    """
    agent = policy.agent
    kind = f"LoRA rank {agent.tuning.rank}" if agent.tuning.kind == "lora" else "full fine-tuning"
    name = in_markdown(agent.base.name)
    library = "peft" if agent.tuning.kind == "lora" else "transformers"
    rows = "\n".join(
        f"| {m.title} (`{m.name}`) | {m.format(metrics[m.name])} |" for m in in_order(metrics)
    )
    warning = f"\n**{caution}.**\n" if caution else ""
    base = _how_to_load(agent) + _how_to_quantise(agent) + _where_the_base_is(agent)
    return f"""---
{_base_line(agent)}library_name: {library}
pipeline_tag: text-generation
tags: [macpo, {method}, weak-to-strong]
---

# {agent.name} of the run {run}
{warning}
{name}, aligned from weak supervision: method {method}, {rounds} rounds, {kind},
{agent.dtype}. Trained by the `macpo` library (arXiv 2410.07672).
Weights: `{policy.weights_key[:16]}`.{base}

On the run's own test split, after the last round:

| metric | value |
|---|---|
{rows}
"""


def _base_line(agent: Agent) -> str:
    """Return the line of a card's head that names the base, of one that others can look up."""
    name = agent.base.hub_name
    return "" if name is None else f"base_model: {json.dumps(name)}\n"


def _where_the_base_is(agent: Agent) -> str:
    """Say how another machine gets the base, which no name on the hub is; a line of its own."""
    if agent.base.hub_name is not None or agent.tuning.kind != "lora":
        return ""
    return (
        f"\nThe base ({in_markdown(agent.base.name)}) is no model of the hub, and "
        "adapter_config.json names its folder on the machine that trained it. `macpo plan` with "
        "the config of the run makes it again elsewhere; `macpo export` writes base and adapter as "
        "one portable model."
    )


def _how_to_load(agent: Agent) -> str:
    """Return a sentence on the class that loads a model that is no causal LM by name, or nothing.

    It begins a line of its own.
    """
    folder = Path(agent.base.location)
    if not (folder / CONFIG).is_file():
        return ""
    name = auto_class(read_config(folder, with_code=agent.base.trust_remote_code)).__name__
    if name == "AutoModelForCausalLM":
        return ""
    what = "Its base is loaded" if agent.tuning.kind == "lora" else "It is loaded"
    return f"\n{what} with transformers' `{name}`."


def _how_to_quantise(agent: Agent) -> str:
    """Say how to load the base of an adapter that goes over 4 bits; a line of its own."""
    if agent.base.quantize is None:
        return ""
    said = ", ".join(f"{name}={value!r}" for name, value in options(agent.dtype).items())
    return (
        f"\nIts base is quantised while it loads: `from_pretrained(..., dtype={agent.dtype!r}, "
        f"quantization_config=BitsAndBytesConfig({said}))`, as `{NOTE}` says. Over the base as it "
        "is stored the adapter makes another model."
    )


def base_reference(agent: Agent) -> str:
    """Return how others find the base model: its hub name, else the folder on this machine."""
    base = agent.base
    if base.hub_name is not None:
        return base.hub_name
    return base.location


def _is_published(folder: Path, fields: dict[str, Any], note: Callable[[str], None]) -> bool:
    """Tell whether a folder holds this very policy already, whole; note what is damaged."""
    if not os.path.lexists(folder):
        return False
    try:
        return dict(verify(folder).fields) == fields
    except DamagedError as error:
        note(f"{error.fault}; it is published again")
        return False


def _check_adapter(loaded: LoadedPolicy, agent: Agent, folder: Path) -> None:
    """Let PEFT load a written adapter over the base, and compare it with the policy.

    Args:
        loaded: the policy, whose adapter is taken off its base.
        agent: whose it is.
        folder: what `write_adapter` wrote.

    Raises:
        ModelError: PEFT cannot load it, or makes another model of it.
    """
    import torch
    from peft import PeftModel

    ids = [probe_ids(base_model(loaded.model), CHECKED_TOKENS)]
    with torch.inference_mode():
        [own] = own_logits(loaded.model, ids)
    try:
        with quiet_peft():
            again = PeftModel.from_pretrained(loaded.model.unload(), str(folder)).eval()
        with torch.inference_mode():
            [theirs] = own_logits(again, ids)
    except Exception as error:  # whatever it is, others would meet it as well
        fault = f"PEFT cannot load it ({first_line(error)})"
    else:
        if agree(theirs, own, own.dtype):
            return
        off = relative_error(theirs, own, own.dtype)
        fault = f"with PEFT its logits are off by {off:.2g} of their spread"
    raise ModelError(
        f"{agent.name}: its adapter over {agent.base.name} cannot be handed out, since {fault}; "
        "the trained weights stay in the run's store. Name other layers in tuning.targets, such "
        "as q_proj and v_proj"
    )
