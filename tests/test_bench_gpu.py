"""The script for GPUs runs from end to end at tiny sizes, wherever it is."""

from __future__ import annotations

import json
import runpy

import pytest
import torch

from tests.runs import SOURCES

SCRIPT = SOURCES.parent / "bench" / "gpu" / "run.py"


def test_script_checks_numbers_then_times_and_ends_with_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main(["--tiny", "--repeats", "1", "--pack-tokens", "200"])

    result = json.loads(capsys.readouterr().out.splitlines()[-1])

    for name in ("full loop float32", "window loop float32", "full loop bfloat16 recomputed"):
        assert max(result["numerics"][name].values()) < 0.15
    if not torch.cuda.is_available():
        assert result["numerics"]["full varlen bfloat16"].startswith("not here: ")
    assert result["step"]["fastest"].startswith(("loop", "varlen", "flex"))
    assert result["step"]["ratio"] > 0
    assert result["step"]["decode"]["tokens_per_second"] > 0


def test_cards_of_the_script_are_those_of_the_plan() -> None:
    from macpo.planning.cards import CARDS

    known = {card.name.replace("-", " "): card.tflops for card in CARDS}
    for name, tflops in runpy.run_path(str(SCRIPT))["TFLOPS"].items():
        assert any(shown.startswith(name) and t == tflops for shown, t in known.items())
