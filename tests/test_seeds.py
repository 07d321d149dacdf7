"""Seeds and keys are the same on every machine, and differ where anything differs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import macpo
from macpo.seeds import canonical_json, digest, file_digest, stable_seed

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
