"""The list of mutations still fits the code, and docs/mutants.md tells of each."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_fits_the_code(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    mutant = mutation.applied(source)
    assert ast.dump(ast.parse(mutant)) != ast.dump(ast.parse(source))
    for test in mutation.tests:
        assert (ROOT / test).is_file()


def test_mutations_are_many_and_have_names_of_their_own() -> None:
    assert Counter(m.name for m in MUTATIONS).most_common(1)[0][1] == 1
    assert len(MUTATIONS) >= 40


def test_a_mutation_that_no_longer_fits_is_named() -> None:
    mutation = Mutation("sign turned", "src/a.py", "a + b", "a - b", ())
    assert mutation.applied("c = a + b\n") == "c = a - b\n"
    for source, count in (("", 0), ("a + b, a + b", 2)):
        with pytest.raises(ValueError, match=rf"^sign turned: 'a \+ b' stands {count} times in "):
            mutation.applied(source)


def test_documentation_tells_of_each() -> None:
    text = (ROOT / "docs" / "mutants.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()]
    assert [m.name for m in MUTATIONS] == [
        row for row in rows if row in {m.name for m in MUTATIONS}
    ]
    assert "**nothing**" not in text
