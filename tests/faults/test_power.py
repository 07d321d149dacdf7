"""Power cuts, short; `make faults` tries them by the thousand, and in whole runs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from macpo.agents import Policy
from macpo.config import TuningConfig
from macpo.generation.served.adapters import hand_over_adapter
from macpo.store import atomic, checkpoints
from tests.faults import compared
from tests.faults.disk import EXTREMES, Draw, Extreme, Moment, recording, write_out
from tests.faults.outcomes import outcome
from tests.faults.power import Scenario, WentWrong, cuts
from tests.store.cases import CASES, tree
from tests.test_resume import digests
from tests.workbench import Workbench, make_agent


@pytest.fixture(autouse=True)
def _cache_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACPO_CACHE", "set by kill_server.build_model")


def test_after_a_power_cut_at_some_moments_of_every_scenario_the_end_is_the_same() -> None:
    asked = set()
    for name, ask in islice(cuts(Path(), random.Random(7)), 90):
        asked.add(name.partition(",")[0])
        assert outcome(ask) == ("answer", ""), name
    assert asked == set(CASES)


def test_after_a_power_cut_in_a_comparison_the_same_one_and_an_earlier_one_end_the_same() -> None:
    for name, ask in islice(compared.cuts(Path(), random.Random(7)), 60):
        assert outcome(ask) == ("answer", ""), name


def found(moment: Moment, root: Path) -> list[dict[str, bytes | None]]:
    """Return all trees that many choices make of a moment."""
    trees = []
    for choice in (*EXTREMES, *map(Draw, range(150))):
        write_out(moment, root, choice)
        trees.append(tree(root))
    return trees


def record(root: Path, do: Callable[[], None]) -> Moment:
    """Record what is done below a folder; return the last moment."""
    root.mkdir(exist_ok=True)
    with recording(root) as recorder:
        do()
    return recorder.moments[-1]


def test_a_file_that_was_not_synced_may_be_missing_cut_or_full_of_zeros(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    trees = found(record(root, lambda: (root / "a").write_bytes(b"text" * 300) and None), root)
    contents = {found.get("a") for found in trees}
    assert {None, b"", bytes(1200), b"text" * 300, b"text" * 150} <= contents
    assert all(len(content) <= 1200 for content in contents if content is not None)


def test_what_was_synced_is_there_and_what_was_appended_since_damages_nothing_before_it(
    tmp_path: Path,
) -> None:
    root = tmp_path / "disk"

    def write() -> None:
        with (root / "a").open("wb", buffering=0) as file:
            file.write(b"durable ")
            os.fsync(file.fileno())
            atomic.fsync_directory(root)
            file.write(b"and lost")

    contents = {found["a"] for found in found(record(root, write), root)}
    assert {b"durable ", b"durable and lost", b"durable " + bytes(8)} <= contents
    assert all(content is not None and content.startswith(b"durable ") for content in contents)


def test_names_are_lost_and_kept_independently_of_one_another(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    for name in "ab":
        (root / name).write_bytes(name.encode())

    def change() -> None:
        os.unlink(root / "a")
        os.rename(root / "b", root / "c")

    names = {frozenset(found) for found in found(record(root, change), root)}
    assert names == {frozenset(n) for n in ("c", "bc", "ac", "abc", "b", "ab")}  # b or c, or both


def test_a_folder_whose_name_was_not_synced_is_lost_with_all_that_was(tmp_path: Path) -> None:
    root = tmp_path / "disk"

    def make() -> None:
        os.mkdir(root / "deep")
        (root / "deep" / "a").write_bytes(b"a")
        atomic.fsync_tree(root / "deep")

    assert {frozenset(f) for f in found(record(root, make), root)} == {
        frozenset(),
        frozenset({"deep", "deep/a"}),
    }


def test_an_adapter_under_the_name_of_its_content_is_whole_or_not_there(tmp_path: Path) -> None:
    """An engine is given whatever is under that name."""
    agent = make_agent(tuning=TuningConfig(rank=2))
    loaded, root = Workbench(tmp_path).train_from(agent), tmp_path / "disk"
    root.mkdir()
    with recording(root) as recorder:
        adapter = hand_over_adapter(loaded, Policy(agent, "positive"), root)
    place = Path(adapter.path)
    whole = digests(place)
    assert len(whole) == 2
    for moment in recorder.moments:
        for choice in EXTREMES:
            write_out(moment, root, choice)
            assert not place.exists() or digests(place) == whole
    write_out(recorder.moments[-1], root, Extreme("old", "old"))
    assert digests(place) == whole


def nothing(path: Path) -> None:
    """Stand for an fsync that was forgotten."""


@pytest.mark.parametrize(
    ("scenario", "forgotten"),
    [
        ("train", "fsync_file"),
        ("train", "fsync_directory"),
        ("build_model", "fsync_file"),
        ("replace_text", "fsync_directory"),
    ],
)
def test_a_forgotten_fsync_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str, forgotten: str
) -> None:
    monkeypatch.setattr(atomic, forgotten, nothing)
    assert goes_wrong(Scenario(scenario, tmp_path))


def test_an_old_checkpoint_that_goes_before_the_new_one_is_safe_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = checkpoints.Checkpoints._commit

    def hasty(self: checkpoints.Checkpoints, step: int, write: Callable[[Path], None]) -> None:
        for path in self._entries():
            atomic.remove_tree(path)
        plain(self, step, write)

    monkeypatch.setattr(checkpoints.Checkpoints, "_commit", hasty)
    assert goes_wrong(Scenario("train", tmp_path))


def goes_wrong(scenario: Scenario) -> bool:
    """Tell whether a cut at any moment of a scenario is noticed, lost all names or none."""
    choices = (Extreme("old", "old"), Extreme("new", "old"))
    for moment in reversed(scenario.recorded[0]):
        for choice in choices:
            try:
                scenario.ask(moment, choice)
            except WentWrong:
                return True
    return False
