"""`macpo annotate` from a run to results: the real server, killed and started again."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from macpo.annotation.pairs import pair_answers, unanswered
from macpo.annotation.results import annotation_results
from macpo.errors import DataError, StoreError
from macpo.records import read_answers, read_pairs
from macpo.run_directory import RunDir
from macpo.sides import Side, find_side
from tests.runs import FinishedRun, python_environment, run_cli, start_cli


def ask(address: str, path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address + path, data, headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.load(reply)


class Serving:
    """`macpo annotate` in a process of its own."""

    def __init__(self, *args: str | Path) -> None:
        pytest.importorskip("uvicorn", reason="needs macpo[annotate]")
        self.process = start_cli(["annotate", *args, "--port", "0"], PYTHONUNBUFFERED="1")
        assert self.process.stdout is not None
        self.said = ""
        while "open http" not in self.said:
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            self.said += line
        found = re.search(r"open (http://127\.0\.0\.1:\d+)/ in", self.said)
        assert found is not None
        self.address = found[1]

    def stop(self, how: int) -> tuple[int, str]:
        self.process.send_signal(how)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


def side(folder: Path, text: str = "student") -> Side:
    return find_side(text, folder, unanswered)


def test_judgments_survive_a_kill_and_the_next_start_goes_on(copied: FinishedRun) -> None:
    first = Serving(copied.folder)
    try:
        assert "student@2 against student@0" in first.said
        assert "judged so far: nothing" in first.said
        state = ask(first.address, "/api/next?annotator=Anna")
        total = state["pairs"]
        for _ in range(total - 1):
            pair = state["pair"]["id"]
            state = ask(
                first.address,
                "/api/judge",
                {"annotator": "Anna", "pair": pair, "choice": "left", "seconds": 1},
            )
    finally:
        first.stop(signal.SIGKILL)

    second = Serving(copied.folder)
    try:
        assert f"judged so far: Anna {total - 1}" in second.said
        again = ask(second.address, "/api/next?annotator=Anna")
        assert again["done"] == total - 1
        assert again["pair"] == state["pair"]
    finally:
        code, err = second.stop(signal.SIGINT)

    assert code == 0
    assert f"macpo annotate results {copied.folder}" in err
    (path,) = (copied.folder / "annotations").glob("*.sqlite")
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    shown = run_cli(["annotate", "results", copied.folder])
    assert shown.code == 0
    assert f"{total - 1} of {total} pairs judged, by 1 annotator" in shown.out


def test_results_are_handed_on_and_pairs_are_data(copied: FinishedRun, tmp_path: Path) -> None:
    serving = Serving(copied.folder, "--policy", "weak-a@1", "--against", "weak-b@0")
    try:
        for name in ("Anna", "Bert"):
            state = ask(serving.address, f"/api/next?annotator={name}")
            while state["pair"] is not None:
                body = {"annotator": name, "pair": state["pair"]["id"], "choice": "left"}
                state = ask(serving.address, "/api/judge", body)
    finally:
        serving.stop(signal.SIGTERM)

    table, pairs = tmp_path / "judgments.csv", tmp_path / "pairs.jsonl"
    shown = run_cli(
        ["annotate", "results", copied.folder, "--json", "--judgments", table, "--export", pairs]
    )
    (found,) = json.loads(shown.out)
    (result,) = annotation_results(copied.folder)
    assert found == json.loads(json.dumps(result.to_json()))
    assert (found["one"], found["other"]) == ("weak-a@1", "weak-b@0")
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + found["judgments"]
    decided = re.search(r"pairs: (\d+) in", shown.err)
    if decided is None:  # both always saw other sides than the other, and so undid each other
        assert "nothing to export" in shown.err
        return
    assert len(read_pairs(tmp_path)) == int(decided[1])
    assert run_cli(["data", "check", pairs]).code == 0


def test_default_is_the_last_round_with_answers_against_round_0(copied: FinishedRun) -> None:
    run = RunDir(copied.folder)
    plan = run.plan()
    assert plan is not None
    (stage,) = plan.answers(plan.policy("student", 2), "test")
    shutil.rmtree(run.artifact(stage))

    assert side(copied.folder).label == "student@1"
    with pytest.raises(
        StoreError, match=rf"{re.escape(stage.name)} is not done yet; run the config"
    ):
        side(copied.folder, "student@2")


def test_pairs_are_the_answers_of_both_to_the_same_prompts(finished: FinishedRun) -> None:
    pairing = pair_answers(side(finished.folder), side(finished.folder, "student@0"))

    run = RunDir(finished.folder)
    plan = run.plan()
    assert plan is not None
    answers = []
    for round in (2, 0):
        (stage,) = plan.answers(plan.policy("student", round), "test")
        answers.append({p.id: r for p, r in read_answers(run.artifact(stage))})
    assert len(pairing.pairs) + pairing.equal == 4
    for pair in pairing.pairs:
        assert [pair.one, pair.other] == [found[pair.prompt.id] for found in answers]


def test_runs_are_compared_on_the_prompts_that_both_were_asked(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with runs on other data: here what is read of one run is cut."""
    one, other = side(finished.folder), side(finished.folder, "student@0")
    all_answers = {}
    for s in (one, other):
        (stage,) = s.plan.answers(s.policy, "test")
        all_answers[s.label] = read_answers(s.run.artifact(stage))
    read = {"student@2": all_answers[one.label], "student@0": all_answers[other.label][:3]}
    turns = iter([read["student@2"], read["student@0"]])
    monkeypatch.setattr("macpo.annotation.pairs.read_answers", lambda _: next(turns))
    pairing = pair_answers(one, other)
    assert pairing.alone == 1
    assert len(pairing.pairs) + pairing.equal == 3

    turns = iter([read["student@2"][:1], read["student@0"][1:]])
    with pytest.raises(DataError, match=r"answered different prompts: none of 1 and 2 is the same"):
        pair_answers(one, other)

    turns = iter([read["student@2"], read["student@2"]])
    with pytest.raises(
        DataError, match=r"gave the same answers to all 4 prompts: there is nothing"
    ):
        pair_answers(one, other)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--against", "student@2"], "both sides are the answers of student@2; name another with"),
        (["--against", "student@9"], "student has no policy of round 9; its rounds are 0 to 2"),
        (["--policy", "teacher"], "no agent 'teacher' in this run"),
        (["--port", "70000"], None),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    finished: FinishedRun, args: list[str], message: str | None
) -> None:
    shown = run_cli(["annotate", finished.folder, *args])
    if message is None:
        assert shown.code == 2
        return
    assert shown.code == 1
    assert shown.err.startswith(f"macpo: {message}")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("missing", ["starlette.applications", "uvicorn"])
def test_without_the_extra_its_name_is_told(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "macpo.annotation.server", raising=False)
    shown = run_cli(["annotate", finished.folder])
    assert shown.code == 1
    assert shown.err.endswith("install them with: pip install 'macpo[annotate]'\n")


def test_results_of_a_run_that_nobody_judged_say_how_to_begin(finished: FinishedRun) -> None:
    shown = run_cli(["annotate", "results", finished.folder])
    assert shown.code == 1
    assert f"begin with: macpo annotate {finished.folder}" in shown.err
    assert "no run here" in run_cli(["annotate", "results", finished.folder / "none"]).err


def test_annotating_imports_no_model_library(finished: FinishedRun) -> None:
    pytest.importorskip("starlette", reason="needs macpo[annotate]")
    code = (
        "import sys\n"
        "import macpo.cli.annotate, macpo.annotation.server, macpo.report.people\n"
        "from macpo.sides import find_side\n"
        "from macpo.annotation.pairs import pair_answers, unanswered\n"
        f"one = find_side('student', {str(finished.folder)!r}, unanswered)\n"
        f"other = find_side('student@0', {str(finished.folder)!r}, unanswered)\n"
        "pair_answers(one, other)\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "[]\n"
