"""Plain values out of YAML text, and `--set section.key=value` items applied to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from macpo.config.values import shown

_NEVER = re.compile(r"(?!)")
_ODD_NUMBER = {
    "tag:yaml.org,2002:int": re.compile(r".*:|[-+]?0[0-9_]"),
    "tag:yaml.org,2002:float": re.compile(r".*:"),
}
"""By a scalar's tag, what numbers look like that do not mean what they say."""

MOST_VALUES = 100_000
"""So many values a document may stand for, with aliases written out."""


def parse_yaml(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        ValueError: it cannot be parsed, or a mapping has a key twice; one line.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_bombs(node)
        _refuse_odd_numbers(node)
        doubled = _doubled_key(node)
        if doubled is None:
            return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except _OddError as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        # What PyYAML raises for a value that does not fit its tag: KeyError for `!!bool x`,
        # AttributeError for `!!timestamp x`, ValueError for the date 2024-02-31, and so on.
        raise ValueError(f"a value does not fit its type ({shown(error)})") from None
    line = doubled.start_mark.line + 1
    raise ValueError(f"line {line}: the key {shown(doubled.value)} is given twice; remove one")


class _OddError(Exception):
    """A document that is YAML and that nobody means as it would be read; says why."""


def _refuse_bombs(root: yaml.Node) -> None:
    """Refuse a document whose anchors stand for very many values, or for themselves.

    A few lines of aliases of aliases stand for billions. Values are counted as often as they would
    be written out, each node once.

    Raises:
        _OddError: there are too many, or no end of them.
    """
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()
    pending = [root]
    while pending:
        node = pending[-1]
        children = _children(node)
        left = [child for child in children if id(child) not in sizes]
        if left and id(node) not in open_nodes:
            open_nodes.add(id(node))
            if any(id(child) in open_nodes for child in left):
                raise _OddError("an anchor (&) holds itself")
            pending += left
            continue
        if left:
            raise _OddError("an anchor (&) holds itself")
        pending.pop()
        open_nodes.discard(id(node))
        sizes[id(node)] = 1 + sum(sizes[id(child)] for child in children)
        if sizes[id(node)] > MOST_VALUES:
            raise _OddError(
                f"its anchors (&) and aliases (*) stand for more than {MOST_VALUES:,} values"
            )


def _children(node: yaml.Node) -> list[yaml.Node]:
    """Return the nodes directly inside of one."""
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return []


def _refuse_odd_numbers(root: yaml.Node) -> None:
    """Refuse numbers that YAML 1.1 reads as others than they say: 1:30 is 90, and 010 is 8.

    Raises:
        _OddError: there is one; says its line.
    """
    pending, visited = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        pending += _children(node)
        if isinstance(node, yaml.ScalarNode) and _ODD_NUMBER.get(node.tag, _NEVER).match(
            node.value
        ):
            raise _OddError(
                f"line {node.start_mark.line + 1}: YAML reads {shown(node.value)} as another "
                "number (to base 60 or 8); write it as a decimal number, or in quotes"
            )


def _doubled_key(root: yaml.Node) -> yaml.ScalarNode | None:
    """Find a key that its mapping has twice, of which PyYAML would silently drop the first."""
    pending, visited = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in visited or not isinstance(node, yaml.CollectionNode):
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
            continue
        keys = set()
        for key, value in node.value:
            pending += (key, value)
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    return key
                keys.add((key.tag, key.value))
    return None


def apply_override(raw: dict[str, Any], item: str) -> dict[str, Any]:
    """Return `raw` with one "a.b.c=value" set.

    Raises:
        ValueError: it is not of that form, or leads nowhere.
    """
    name, equals, text = item.partition("=")
    if not equals or not name.strip():
        raise ValueError("write it as section.key=value")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"the value is not valid YAML: {error}") from None
    changed: dict[str, Any] = _with_value(raw, (), name.strip().split("."), value)
    return changed


def _with_value(node: Any, done: tuple[str, ...], parts: Sequence[str], value: Any) -> Any:
    """Return a copy of `node` with the item at `parts` replaced; `done` leads to `node`.

    It copies because YAML's anchors let two sections be one object, of which one is to change.
    """
    if not parts:
        return value
    key, rest = parts[0], parts[1:]
    here = ".".join(done)
    if isinstance(node, list):
        if not re.fullmatch(r"[0-9]{1,6}", key) or int(key) >= len(node):
            raise ValueError(f"{here} has no item {key}; it has {len(node)}, counted from 0")
        number = int(key)
        item = _with_value(node[number], (*done, key), rest, value)
        return [*node[:number], item, *node[number + 1 :]]
    if isinstance(node, str) and done[-1] == "model":
        node = {"source": node}
    if node is not None and not isinstance(node, dict):
        raise ValueError(f"{here} is {shown(node)}, not a section with keys")
    section = node or {}
    return {**section, key: _with_value(section.get(key), (*done, key), rest, value)}
