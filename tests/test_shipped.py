"""Shipped examples are found by name, from a clone and from an installed package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from macpo import shipped
from macpo.compare import load_design
from macpo.config import DataConfig, load_config
from macpo.data import load_preferences
from macpo.data.loading import source_digest
from macpo.data.sources import find_source
from macpo.errors import ConfigError
from macpo.shipped import examples, examples_folder, locate, nearest_example
from tests.compare.files import write_compare

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_examples_of_a_clone_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("example:quickstart") == EXAMPLES / "quickstart.yaml"
    assert locate("example:quickstart.yaml") == EXAMPLES / "quickstart.yaml"
    assert locate(Path("example:compare/main")) == EXAMPLES / "compare" / "main.yaml"
    assert locate("example:data/quickstart.jsonl") == EXAMPLES / "data" / "quickstart.jsonl"
    assert locate("quickstart") == Path("quickstart")


def test_an_installed_package_has_them_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel carries a copy of examples/, which goes before anything that lies around."""
    package = tmp_path / "site-packages" / "macpo"
    shutil.copytree(EXAMPLES, package / "examples")
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.setattr(shipped.resources, "files", lambda name: package)
    assert examples_folder() == package / "examples"
    config = load_config("example:quickstart")
    assert config.data.source == str(package / "examples" / "data" / "quickstart.jsonl")
    assert len(load_design("example:compare/main").cells) == 90


def test_a_package_without_them_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped.resources, "files", lambda name: tmp_path / "a" / "b" / "macpo")
    with pytest.raises(ConfigError, match=r"b/macpo: its examples are missing; install macpo's"):
        locate("example:quickstart")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("quikstart", r"did you mean example:quickstart\?$"),
        ("compare/man.yaml", r"did you mean example:compare/main\?$"),
        ("", "there are bbq-smollm2, .*paper-hh-helpful, quickstart, .*compare/main"),
        ("../pyproject.toml", "there are bbq-smollm2, .*paper-hh-helpful"),
        (f"{EXAMPLES}/quickstart.yaml", "there are bbq-smollm2, .*paper-hh-helpful|did you mean"),
    ],
)
def test_an_unknown_example_comes_with_the_nearest_or_all(name: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=rf"^example:{name}: there is no such example; {remedy}"):
        load_config(f"example:{name}")


def test_every_example_says_what_it_is() -> None:
    found = examples()
    assert [e.name for e in found][:8] == [
        "example:bbq-smollm2",
        "example:constraints-smollm2",
        "example:demo",
        "example:gsm8k-smollm2",
        "example:paper-hh-helpful",
        "example:quickstart",
        "example:smollm2-hh-harmless",
        "example:testbed",
    ]
    assert len(found) == len(list(EXAMPLES.rglob("*.yaml")))
    assert all(locate(e.name).is_file() and 20 < len(e.summary) < 300 for e in found)
    assert nearest_example("tesbed") == "example:testbed"
    assert nearest_example("zzz") is None


def test_shipped_data_can_be_named_in_a_config() -> None:
    named = DataConfig(source="example:data/quickstart.jsonl")
    there = DataConfig(source=str(EXAMPLES / "data" / "quickstart.jsonl"))
    assert load_preferences(named).examples == load_preferences(there).examples
    assert source_digest(named) == source_digest(there)
    assert find_source(named.source).is_here(named)
    with pytest.raises(ConfigError, match="example:data/no: there is no such example"):
        load_preferences(DataConfig(source="example:data/no"))


def test_a_comparison_starts_from_an_example(tmp_path: Path) -> None:
    path = write_compare(tmp_path)
    raw = {**yaml.safe_load(path.read_text(encoding="utf-8")), "base": "example:quickstart"}
    raw["methods"] = {"macpo": "macpo", "spin": "spin"}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    cell = load_design(path).cells[0]
    assert cell.config.student == load_config("example:quickstart").student
