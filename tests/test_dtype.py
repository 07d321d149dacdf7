"""What `dtype: auto` means is decided once."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch

from macpo import machine
from macpo.dtype import Resolved, known_dtype, read_resolved, resolve_once
from macpo.errors import StoreError

CPU = torch.device("cpu")


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The devices on which dtypes were timed; bfloat16 wins everywhere."""
    devices: list[torch.device] = []

    def time_dtypes(device: torch.device) -> tuple[str, dict[str, float]]:
        devices.append(device)
        return "bfloat16", {"float32": 10.04, "bfloat16": 50.0}

    monkeypatch.setattr(machine, "fastest_dtype", time_dtypes)
    return devices


def test_auto_is_timed_once_and_kept(tmp_path: Path, timed: list[torch.device]) -> None:
    notes: list[str] = []

    first = resolve_once(tmp_path / "run.json", "auto", CPU, notes.append)
    again = resolve_once(tmp_path / "run.json", "auto", CPU, notes.append)

    assert timed == [CPU]
    assert first == again == read_resolved(tmp_path / "run.json")
    assert (first.dtype, first.machine, first.device) == ("bfloat16", platform.node(), "cpu")
    assert first.matmul_gflops == {"float32": 10.0, "bfloat16": 50.0}
    assert first.torch == torch.__version__
    assert notes == ["dtype: bfloat16 (float32 10 GFLOP/s, bfloat16 50 GFLOP/s measured here)"]


def test_named_dtype_is_not_timed_and_takes_the_place_of_another(
    tmp_path: Path, timed: list[torch.device]
) -> None:
    notes: list[str] = []
    for asked in ("float32", "bfloat16", "float32"):
        assert resolve_once(tmp_path / "run.json", asked, CPU, notes.append).dtype == asked

    assert resolve_once(tmp_path / "run.json", "auto", CPU, notes.append).dtype == "float32"
    assert timed == notes == []


def test_decision_of_another_machine_stays_and_is_told(
    tmp_path: Path, timed: list[torch.device]
) -> None:
    (tmp_path / "run.json").write_text('{"dtype": "float32", "machine": "elsewhere"}')
    notes: list[str] = []

    kept = resolve_once(tmp_path / "run.json", "auto", CPU, notes.append)

    assert kept == Resolved("float32", machine="elsewhere")
    assert timed == []
    assert notes == [
        "dtype stays float32, as resolved on elsewhere; to change it, set dtype (everything is "
        "then run anew)"
    ]


def test_whose_dtype_it_is_stands_in_the_note(tmp_path: Path, timed: list[torch.device]) -> None:
    notes: list[str] = []
    resolve_once(tmp_path / "compare.json", "auto", CPU, notes.append, whose=" for all cells")

    assert notes[0].startswith("dtype: bfloat16 for all cells (float32 10 GFLOP/s")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"run\.json cannot be read .*; delete it to resolve anew"),
        ("[]", r"run\.json names no dtype; delete it to resolve anew"),
        (json.dumps({"dtype": "float16"}), r"run\.json names no dtype; delete it"),
    ],
)
def test_file_that_is_not_ours_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content, encoding="utf-8")

    with pytest.raises(StoreError, match=message):
        read_resolved(tmp_path / "run.json")


def test_what_a_dtype_means_before_the_run() -> None:
    assert known_dtype("auto", None) is None
    assert known_dtype("auto", Resolved("bfloat16")) == "bfloat16"
    assert known_dtype("float32", Resolved("bfloat16")) == "float32"
