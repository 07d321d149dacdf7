"""Whether a store is one for all nodes, and how far locks reach; without a cluster."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from macpo.errors import ClusterError
from macpo.execution.cluster.shared import (
    PROBES,
    Seen,
    locks_reach,
    probe,
    refuse_strangers,
    see,
)


def from_another_process(path: Path) -> Seen:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(see, (path,))


def test_another_process_reads_the_word_and_is_locked_out(tmp_path: Path) -> None:
    with probe(tmp_path) as (path, word):
        seen = from_another_process(path)

    assert seen.word == word
    assert locks_reach([seen])
    refuse_strangers(tmp_path, word, [seen])
    assert not (tmp_path / PROBES).exists()


def test_a_node_on_which_locks_do_not_reach_calls_for_leases(tmp_path: Path) -> None:
    with probe(tmp_path) as (path, _):
        seen = see(path)

    assert not locks_reach([seen, replace(seen, locked=False)])


def test_a_store_that_a_node_does_not_see_is_refused(tmp_path: Path) -> None:
    with probe(tmp_path / "here") as (path, word):
        elsewhere = see(tmp_path / "there" / path.name)

    with pytest.raises(ClusterError, match="put it on a file system that all nodes share"):
        refuse_strangers(tmp_path, word, [replace(elsewhere, host="node-2")])


def test_a_folder_of_the_same_name_on_another_disk_is_refused(tmp_path: Path) -> None:
    with probe(tmp_path) as (path, word):
        seen = see(path)

    with pytest.raises(ClusterError, match="node-2: the store"):
        refuse_strangers(tmp_path, word, [seen, replace(seen, host="node-2", word="other")])


@pytest.mark.parametrize("change", [{"macpo": "0.0.9"}, {"python": "3.12.1"}])
def test_a_node_with_other_versions_is_refused(tmp_path: Path, change: dict[str, str]) -> None:
    with probe(tmp_path) as (path, word):
        seen = see(path)

    with pytest.raises(ClusterError, match="install one environment everywhere"):
        refuse_strangers(tmp_path, word, [replace(seen, **change)])  # type: ignore[arg-type]
