"""Seeds and keys are the same on every machine, and differ where anything differs."""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import hashlib
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import macpo
from macpo.config.base import Section
from macpo.seeds import canonical_json, digest, file_digest, plain, stable_seed
from macpo.stage import Stage, StageContext

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_canonical_json_is_sorted_compact_ascii() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"é": "\ud800\n"}}
    assert canonical_json(value) == r'{"a":{"\u00e9":"\ud800\n"},"b":[1,2.5,null,true]}'


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@settings(max_examples=200)
@given(JSON, JSON)
def test_different_values_have_different_text(one: Any, other: Any) -> None:
    assert (canonical_json(one) == canonical_json(other)) == (
        repr(_sorted(one)) == repr(_sorted(other))
    )


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def test_tuples_are_lists_and_integers_are_not_floats() -> None:
    assert digest((1, (2,))) == digest([1, [2]])
    assert digest(1) != digest(1.0)
    assert digest(True) != digest(1)


# Values that Python, JSON, YAML or Unicode take for one another.
ALIKE: list[list[Any]] = [
    [1, 1.0, True, "1", "1.0", "True", "true", [1], {"1": 1}],
    [0, 0.0, -0.0, False, "", None, [], {}, "0", "null", "None", [None], [[]]],
    [1e16, 10**16, "1e+16", "10000000000000000"],
    [2**53, 2**53 + 1, float(2**53)],
    [0.1, 0.1 + 2**-56, "0.1"],
    ["é", "e\u0301", "E\u0301"],
    ["ﬁ", "fi"],
    ["Å", "\u212b", "A\u030a"],
    ["a", "a ", " a", "a\n", "a\0", "a\u200b", "a\ufeff"],
    ["\\ud83d\\ude00", "😀", "\\U0001f600", "\ud83d", "\ude00", "\ude00\ud83d"],
    [["a", "b"], ["ab"], ["a", ["b"]], "a,b", '["a","b"]', {"a": "b"}, {"a": "b", "": None}],
    [{"a": {"b": 1}}, {"a.b": 1}, {"a": ["b", 1]}, {"b": {"a": 1}}],
]


@pytest.mark.parametrize("values", ALIKE, ids=lambda values: repr(values[0]))
def test_what_looks_alike_has_different_text(values: list[Any]) -> None:
    for wrap in (lambda v: v, lambda v: [v], lambda v: {"k": {"k": v}}, lambda v: (v, v)):
        assert len({canonical_json(wrap(value)) for value in values}) == len(values)


@st.composite
def relatives(draw: st.DrawFn) -> tuple[Any, Any]:
    """Draw a value and another one that differs from it in one place, in type or in spelling."""
    value = draw(JSON)
    path, at = [], value
    while isinstance(at, list | dict) and at and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        path.append(key)
        at = at[key]
    other = draw(st.sampled_from(_disguises(at)))
    for depth in reversed(range(len(path))):
        inside = value
        for key in path[:depth]:
            inside = inside[key]
        copy: Any = dict(inside) if isinstance(inside, dict) else list(inside)
        copy[path[depth]] = other
        other = copy
    return value, other


def _disguises(value: Any) -> list[Any]:
    found: list[Any] = [str(value), repr(value), [value], {"": value}, bool(value)]
    if isinstance(value, str):
        found += [unicodedata.normalize(form, value) for form in ("NFC", "NFD", "NFKC", "NFKD")]
        found += [value.casefold(), value.strip(), value + "\0", value.encode().hex()]
    elif isinstance(value, int) and abs(value) < 2**1000:
        found += [float(value), -value, int(float(value))]
    elif isinstance(value, float):
        found += [-value, value * (1 + 2**-52), int(value)]
    elif isinstance(value, dict):
        found += [list(value.items()), list(value), {str(k): str(v) for k, v in value.items()}]
    elif isinstance(value, list):
        found += [value[::-1], [*value, None], value[:-1], dict.fromkeys(map(str, value))]
    return [v for v in found if not (isinstance(v, float) and v in (np.inf, -np.inf))]


@settings(max_examples=400)
@given(relatives())
def test_relatives_have_one_text_only_where_they_are_one_value(pair: tuple[Any, Any]) -> None:
    one, other = pair
    assert (canonical_json(one) == canonical_json(other)) == (
        repr(_sorted(one)) == repr(_sorted(other))
    )


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=4)


@settings(max_examples=300)
@given(ANY_TEXT, ANY_TEXT)
@example("\ud83d\ude00", "\U0001f600")
@example("\ud800", "\\ud800")
def test_texts_with_half_characters_are_told_apart_or_refused(one: str, other: str) -> None:
    texts = {}
    for text in (one, other):
        if re.search("[\ud800-\udbff][\udc00-\udfff]", text):
            with pytest.raises(ValueError, match="the two halves of a character apart; join them"):
                canonical_json({text: text})
        else:
            texts[text] = canonical_json({text: text})
    assert len(set(texts.values())) == len(texts)


class _Whole(enum.Enum):
    A = 1


def _nothing() -> None:
    return None


NO_FORM: dict[str, Any] = {
    "set": {1, 2},
    "frozen set": frozenset("ab"),
    "bytes": b"a",
    "byte array": bytearray(b"a"),
    "object": object(),
    "function": _nothing,
    "lambda": lambda: 1,
    "class": int,
    "tensor": torch.zeros(1),
    "scalar tensor": torch.tensor(1.0),
    "array": np.zeros(1),
    "numpy integer": np.int64(1),
    "numpy boolean": np.True_,
    "path": Path("x"),
    "date": datetime.date(2026, 1, 1),
    "decimal": decimal.Decimal(1),
    "complex": 1j,
    "range": range(2),
    "generator": (i for i in ()),
    "view": {}.keys(),
    "enumeration": _Whole.A,
    "not a number": float("nan"),
    "infinity": float("inf"),
    "key that is a number": {1: 2},
    "key that is a tuple": {("a",): 2},
    "key that is none": {None: 2},
    "deep": functools.reduce(lambda inner, _: [inner], range(100_000), []),
    "number of 5,000 digits": 10**5000,
}


@pytest.mark.parametrize("what", NO_FORM)
@pytest.mark.parametrize("place", ["alone", "in a list", "in a section"])
def test_what_has_no_form_of_its_own_is_refused(what: str, place: str) -> None:
    value = NO_FORM[what]
    wrapped = {"alone": value, "in a list": [0, (value,)], "in a section": {"a": {"b": value}}}
    with pytest.raises((TypeError, ValueError)):
        digest(wrapped[place])


@dataclass(frozen=True, eq=False)
class Holding(Stage):
    """A stage of a plugin's, with a field of any kind, and one that came later."""

    kind: ClassVar[str] = "holding"
    added: ClassVar[frozenset[str]] = frozenset({"later"})

    value: Any
    later: Any = field(default=0, kw_only=True)

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Never called."""
        raise NotImplementedError


class Options(Section):
    """A section of a plugin's."""

    value: Any = None


class Foreign(BaseModel):
    """A model of pydantic's that is no section."""

    value: Any = None


@pytest.mark.parametrize("what", NO_FORM)
@pytest.mark.parametrize(
    "holder", [lambda v: v, lambda v: Options(value=v), lambda v: Foreign(value=v)]
)
def test_stage_that_holds_what_has_no_form_has_no_key(what: str, holder: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        print(Holding("a", holder(NO_FORM[what])).key)


@settings(max_examples=100)
@given(relatives())
@example((0, False))
@example((1, 1.0))
def test_stages_with_different_values_have_different_keys(pair: tuple[Any, Any]) -> None:
    same = repr(_sorted(pair[0])) == repr(_sorted(pair[1]))
    for holder in (Options, Foreign):
        one, other = (Holding("a", holder(value=value)).key for value in pair)
        assert (one == other) == same
    scalars = [value for value in pair if not isinstance(value, list | dict)]
    keys = {Holding("a", value, later=value).key for value in scalars}
    assert len(keys) == len({repr(value) for value in scalars})


def test_what_came_later_is_left_out_at_its_default_alone() -> None:
    assert Holding("a", 1, later=0).key == Holding("a", 1).key
    keys = {Holding("a", 1, later=value).key for value in (0, False, 0.0, "", None, ())}
    assert len(keys) == 6


def test_plain_values_are_what_json_has() -> None:
    assert plain({"a": (1, [2.5, None, True])}) == {"a": [1, [2.5, None, True]]}
    with pytest.raises(TypeError, match=r"^a set cannot be part of a stage's key$"):
        plain([{1}])
    with pytest.raises(TypeError, match=r"^the key 1 is no text and cannot be part of"):
        plain({1: 2})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"a": -float("inf")}]])
def test_numbers_that_json_does_not_know_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        canonical_json(value)


@pytest.mark.parametrize("value", [{1, 2}, b"x", Path("x"), [object()]])
def test_values_that_json_does_not_know_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="is not JSON serializable"):
        canonical_json(value)


@pytest.mark.parametrize("key", [1, None, True, 1.5])
def test_a_key_that_is_no_text_is_refused_instead_of_turned_into_text(key: Any) -> None:
    with pytest.raises(TypeError, match=r"^the key \S+ is no text; write '\S+' if it should be$"):
        canonical_json([{"a": ({key: 1},)}])


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="Circular reference"):
        canonical_json(value)


def test_digests_are_sha256_of_the_text_and_pinned() -> None:
    assert digest({"b": 1, "a": "é"}) == hashlib.sha256(b'{"a":"\\u00e9","b":1}').hexdigest()
    assert digest([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


def test_seeds_are_pinned_so_that_no_release_changes_them_by_accident() -> None:
    raw = hashlib.sha256(b'[0,1,"student","6f0c"]').digest()
    assert stable_seed(0, 1, "student", "6f0c") == int.from_bytes(raw[:8], "big") // 2
    assert stable_seed(0, 1, "student", "6f0c") == 5558526104320812165


def test_seeds_of_different_parts_differ() -> None:
    parts: list[tuple[str | int, ...]] = [(), ("a", 1), ("a1",), ("a", "1"), ("a", 1, ""), (1, "a")]
    assert len({stable_seed(*p) for p in parts}) == len(parts)


@given(st.lists(st.one_of(st.integers(), st.text(max_size=5)), max_size=4))
def test_a_seed_is_a_number_of_63_bits(parts: list[str | int]) -> None:
    assert 0 <= stable_seed(*parts) < 2**63


def test_seeds_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    script = "from macpo.seeds import *; print(stable_seed('a', 1), digest({'b': 1, 'a': 2}))"
    source = str(Path(macpo.__file__).parent.parent)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": source, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert outputs == {f"{stable_seed('a', 1)} {digest({'b': 1, 'a': 2})}\n"}


def test_digest_of_a_file_is_that_of_its_bytes_wherever_it_lies(tmp_path: Path) -> None:
    """Longer than one block, so that every block counts."""
    content = bytes(range(256)) * (3 << 12) + b"end"
    (tmp_path / "one").write_bytes(content)
    (tmp_path / "two").write_bytes(content)
    (tmp_path / "other").write_bytes(content[:-1])
    expected = hashlib.sha256(content).hexdigest()
    assert file_digest(tmp_path / "one") == file_digest(tmp_path / "two") == expected
    assert file_digest(tmp_path / "other") != expected
