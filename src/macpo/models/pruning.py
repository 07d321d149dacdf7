"""Depth pruning: a weaker model made of some of a stronger one's decoder layers.

The cut is made in the files, tensor by tensor: layer `kept[j]` of the base becomes layer `j`. No
model is loaded, so a 70B base needs the memory of one tensor. What the files cannot tell, such as
an architecture that treats every second layer differently, is found by building both models
without weights and comparing the layers. A tensor outside of them that is as long as there are
layers, such as Gemma 3n's embeddings for each layer, is cut with them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macpo.errors import ModelError
from macpo.models.classes import auto_class
from macpo.models.folders import CONFIG, INDEX, load_failure, read_config, weight_files
from macpo.models.quantised import refuse_cut

if TYPE_CHECKING:
    from torch import Tensor, nn

RECIPE = 1
"""Part of every key; raise it when the cut writes something else than before."""

LAYER_COUNT = "num_hidden_layers"
BY_LAYER = "per_layer_config"
"""What transformers calls a config's values for single layers, by their numbers."""
NO_LAYER_LISTS = re.compile(r"architectures|.*_token_ids?")
"""Config lists that never run over the layers, however long they happen to be."""


@dataclass(frozen=True, slots=True)
class _Names:
    """What tensors are called in files.

    `layers` matches those of layers: groups `head`, `layer` and `tail`. `over_layers` has those
    that hold a part for each of the base's `count` layers, and the dimension along which.
    """

    layers: re.Pattern[str]
    over_layers: Mapping[str, int]
    count: int


def prune_folder(
    base: Path, kept: Sequence[int], folder: Path, *, name: str, with_code: bool
) -> None:
    """Write the model of `base` with only the layers `kept`, in that order, to `folder`.

    Args:
        base: a complete model folder.
        kept: layer numbers of the base, from 0.
        folder: an empty folder.
        name: of the base, for messages.
        with_code: the base needs `trust_remote_code`.

    Raises:
        ModelError: a layer does not exist, or the architecture cannot be cut this way.
    """
    config = read_config(base, with_code=with_code)
    cut = pruned_config(config, kept, name)
    names = _names_in(base, _check_layers(config, cut, kept, name, with_code=with_code))
    cut.save_pretrained(folder)
    for path in base.iterdir():
        if path.is_file() and path.name not in (CONFIG, INDEX) and not _is_weights(path):
            shutil.copyfile(path, folder / path.name)
    _write_weights(base, kept, names, folder)


def pruned_config(config: Any, kept: Sequence[int], name: str) -> Any:
    """Return a copy of a transformers config for the layers `kept`; lists over layers are cut.

    Raises:
        ModelError: a layer does not exist, the config does not count its layers, or the weights
            are quantised.
    """
    refuse_cut(config, name)
    total = getattr(config, LAYER_COUNT, None)
    if not isinstance(total, int):
        raise ModelError(f"{name}: its config has no {LAYER_COUNT}, so no layers can be cut out")
    beyond = [layer for layer in kept if layer >= total]
    if beyond:
        raise ModelError(
            f"{name}: there is no layer {beyond[0]}; it has {total} layers, so `layers` can name "
            f"0-{total - 1}"
        )
    values = config.to_dict()
    for key, value in values.items():
        over_layers = isinstance(value, list | tuple) and len(value) == total
        if over_layers and not NO_LAYER_LISTS.fullmatch(key):
            values[key] = [value[layer] for layer in kept]
    by_layer = values.get(BY_LAYER)
    if isinstance(by_layer, dict):
        values[BY_LAYER] = {
            new: by_layer[key]
            for new, old in enumerate(kept)
            for key in by_layer
            if int(key) == old
        }
    values[config.attribute_map.get(LAYER_COUNT, LAYER_COUNT)] = len(kept)
    try:
        return type(config)(**values)
    except Exception as error:  # each config class checks its values in its own way
        raise _uncuttable(config, name, error) from error


def _uncuttable(config: Any, name: str, error: Exception) -> ModelError:
    return ModelError(
        f"{name}: {type(config).__name__} allows no model of these layers alone "
        f"({load_failure(error)}); keep others"
    )


def _check_layers(
    config: Any, cut: Any, kept: Sequence[int], name: str, *, with_code: bool
) -> tuple[str, _Names]:
    """Make sure that each layer behaves alike in its old and new place.

    Returns:
        The path of the layers in the model, and the names of tensors by that.

    Raises:
        ModelError: the layers are not one list, or one would change its behaviour by moving.
    """
    model = _empty(config, with_code=with_code)
    path = _path_of_layers(model, getattr(config, LAYER_COUNT), name)
    try:
        small = _empty(cut, with_code=with_code)
    except Exception as error:  # whatever its code makes of the layers
        raise _uncuttable(config, name, error) from error
    before: Any = model.get_submodule(path)
    after: Any = small.get_submodule(path)
    for new, old in enumerate(kept):
        difference = _difference(before[old], after[new], old, new)
        if difference:
            raise ModelError(
                f"{name}: layer {old} would behave differently as layer {new} ({difference}): "
                f"{type(config).__name__} decides this by position; keep layers that stay alike"
            )
    # Files of the bare base model, such as GPT-2's, lack the prefix of the language model.
    root = f"{model.base_model_prefix}."
    bare = path.removeprefix(root)
    layers = re.compile(
        rf"(?P<head>(?:{re.escape(path)}|{re.escape(bare)})\.)(?P<layer>\d+)(?P<tail>\..+)"
    )
    over = _over_layers(model, small, path, name)
    over |= {tensor.removeprefix(root): dim for tensor, dim in over.items()}
    return path, _Names(layers, over, len(before))


def _empty(config: Any, *, with_code: bool) -> nn.Module:
    """Build a model without weights."""
    import torch

    with torch.device("meta"):
        model: nn.Module = auto_class(config).from_config(config, trust_remote_code=with_code)
    return model


def _path_of_layers(model: nn.Module, total: int, name: str) -> str:
    """Return where a model keeps its layers.

    Of several lists of that length it is the one called `layers`, if only one is.
    """
    import torch

    found: list[str] = []
    for path, module in model.named_modules():  # parents come first: nested lists are skipped
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, torch.nn.ModuleList) and len(module) == total and not inside:
            found.append(path)
    called = [path for path in found if path.rpartition(".")[2] == "layers"]
    if len(found) != 1 and len(called) != 1:
        raise ModelError(
            f"{name}: {type(model).__name__} keeps its {total} layers in {len(found)} lists "
            f"({', '.join(found) or 'none'}); only models with one list of layers can be cut"
        )
    return (called if len(found) != 1 else found)[0]


def _over_layers(model: nn.Module, small: nn.Module, path: str, name: str) -> dict[str, int]:
    """Return the tensors beside the layers that hold a part for each, and along which dimension.

    Raises:
        ModelError: a tensor changes its size otherwise.
    """
    lists: tuple[Any, Any] = (model.get_submodule(path), small.get_submodule(path))
    total, kept = map(len, lists)
    cut = {n: tuple(p.shape) for n, p in small.named_parameters()}
    found = {}
    for parameter, tensor in model.named_parameters():
        whole, part = tuple(tensor.shape), cut.get(parameter, ())
        if parameter.startswith(f"{path}.") or whole == part:
            continue
        dims = [d for d, size in enumerate(whole) if part[d : d + 1] != (size,)]
        if (
            len(whole) != len(part)
            or len(dims) != 1
            or whole[dims[0]] * kept != part[dims[0]] * total
        ):
            raise ModelError(
                f"{name}: {parameter} is of another kind with these layers; keep others"
            )
        found[parameter] = dims[0]
    return found


def _names_in(base: Path, expected: tuple[str, _Names]) -> _Names:
    """Return the names of tensors as the files of `base` have them.

    transformers reads the layers of some families under another prefix than it keeps them
    (Nemotron-H: `backbone.layers`), so where the expected one is in no file, the only other one
    that ends alike is taken.
    """
    from safetensors import safe_open

    path, names = expected
    last = re.escape(path.rpartition(".")[2])
    heads: set[str] = set()
    for file in weight_files(base):
        with safe_open(str(file), framework="pt") as weights:
            for tensor in weights.keys():  # noqa: SIM118  (safe_open is no mapping)
                if names.layers.fullmatch(tensor):
                    return names
                match = re.match(rf"(.*\b{last}\.)\d+\.", tensor)
                heads |= {match[1]} if match else set()
    if len(heads) != 1:
        return names
    layers = re.compile(rf"(?P<head>{re.escape(heads.pop())})(?P<layer>\d+)(?P<tail>\..+)")
    return replace(names, layers=layers)


def _difference(before: nn.Module, after: nn.Module, old: int, new: int) -> str:
    """Return what differs between two layers in structure or settings, or an empty text.

    A setting that is the layer's own number in both places is no difference.
    """
    modules_before, modules_after = dict(before.named_modules()), dict(after.named_modules())
    if modules_before.keys() != modules_after.keys():
        odd = sorted(modules_before.keys() ^ modules_after.keys())
        return f"sub-module {odd[0]}"
    for path, module in modules_before.items():
        first, second = _settings(module), _settings(modules_after[path])
        for key in sorted(first.keys() | second.keys()):
            values = (first.get(key), second.get(key))
            if values[0] != values[1] and values != (old, new):
                return f"{'.'.join(filter(None, (path, key)))}: {values[0]} becomes {values[1]}"
    return ""


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return a module's class, tensor shapes and plain attributes."""
    settings: dict[str, Any] = {"class": type(module).__name__}
    for name, tensor in module.named_parameters(recurse=False):
        settings[name] = tuple(tensor.shape)
    for name, value in vars(module).items():
        if not name.startswith("_") and isinstance(value, bool | int | float | str | None):
            settings[name] = value
    return settings


def _is_weights(path: Path) -> bool:
    """Say whether a file holds weights of whatever format."""
    return path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")


def _write_weights(base: Path, kept: Sequence[int], names: _Names, folder: Path) -> None:
    """Copy the kept layers under their new numbers, and all that is in no layer, shard by shard."""
    import json

    from safetensors.torch import save_file

    shards: list[dict[str, str]] = []
    found: set[int] = set()
    total_bytes = 0
    places = {old: new for new, old in enumerate(kept)}
    for file in weight_files(base):
        tensors: dict[str, Tensor] = {}
        for name, tensor in _kept_tensors(file, places, names, found):
            tensors[name] = tensor
            total_bytes += tensor.nbytes
        if tensors:
            shard = f"model-{len(shards) + 1:05d}.safetensors"
            save_file(tensors, str(folder / shard), metadata={"format": "pt"})
            shards.append(dict.fromkeys(tensors, shard))
    lost = sorted(set(kept) - found)
    if lost:
        raise ModelError(f"{base}: its weight files hold no layer {lost[0]}; fetch it again")
    if len(shards) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": {name: shard for part in shards for name, shard in part.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _kept_tensors(
    file: Path, places: dict[int, int], names: _Names, found: set[int]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one weight file that stay, under their new names.

    Args:
        file: a safetensors file.
        places: new layer number by old one.
        names: of layer tensors, and of those with a part for each layer.
        found: receives the old number of each layer that is met.
    """
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  (safe_open is no mapping)
            match = names.layers.fullmatch(name)
            if match is None:
                tensor = weights.get_tensor(name)
                dim = names.over_layers.get(name)
                yield name, tensor if dim is None else _parts(tensor, dim, names.count, places)
                continue
            layer = int(match["layer"])
            if layer in places:
                found.add(layer)
                new_name = f"{match['head']}{places[layer]}{match['tail']}"
                yield new_name, weights.get_tensor(name)


def _parts(tensor: Tensor, dim: int, total: int, kept: Iterable[int]) -> Tensor:
    """Return the parts of some layers, of a tensor with a part for each along `dim`."""
    import torch

    parts = tensor.chunk(total, dim)
    return torch.cat([parts[layer] for layer in kept], dim)
