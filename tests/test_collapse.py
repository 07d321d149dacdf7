"""Signs of collapse: when they are seen, and that a run ends there and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import macpo
from macpo.config import load_config
from macpo.config.collapse import CollapseConfig
from macpo.errors import ConfigError
from macpo.evaluation.collapse import CheckCollapse, best_round, find_signs, read_signs
from macpo.evaluation.measures import write_measures
from macpo.run_directory import RunDir
from macpo.run_status import status
from macpo.stage import Stage
from tests.runs import run_cli, write_config
from tests.workbench import Workbench

SPLITS = {"teacher": 8, "student": 6, "test": 6, "validation": 4}
STEADY = {"validation_perplexity": 10.0, "answer_repetition": 0.02, "answer_copying": 0.05}


def signs(*rounds: dict[str, float], teacher: bool = False, **limits: float) -> dict[str, bool]:
    """Return the signs after the last of some rounds, each with whether it ends a run."""
    history = dict(enumerate(rounds))
    found = find_signs(
        "student", len(rounds) - 1, history, CollapseConfig(**limits), teacher=teacher
    )
    return {sign.name: sign.ends for sign in found}


def test_nothing_is_seen_in_a_steady_policy() -> None:
    assert signs(STEADY, STEADY, STEADY) == {}


@pytest.mark.parametrize(
    ("name", "before", "sound", "broken"),
    [
        ("perplexity", 10.0, 11.9, 12.1),
        ("repetition", 0.02, 0.11, 0.13),
        ("copying", 0.05, 0.14, 0.16),
    ],
)
def test_what_ends_a_run_is_seen_above_its_threshold(
    name: str, before: float, sound: float, broken: float
) -> None:
    metric = "validation_perplexity" if name == "perplexity" else f"answer_{name}"
    assert signs({metric: before}, {metric: sound}) == {}
    assert signs({metric: before}, {metric: broken}) == {name: True}


def test_candidates_are_held_against_those_of_the_first_round_with_a_guard() -> None:
    """Nothing is chosen in round 0; what is refused in round 1 is so by the limits' making."""
    assert signs({}, {"refused_candidates": 0.6}) == {}
    some, more, many = ({"refused_candidates": share} for share in (0.1, 0.29, 0.31))
    assert signs({}, some, more) == {}
    assert signs({}, some, more, many) == {"refused": True}
    assert signs({}, some, many, refused=0.3) == {}


def test_perplexity_is_held_against_its_lowest_and_form_against_round_0() -> None:
    perplexities = [{"validation_perplexity": value} for value in (17.0, 15.8, 19.2)]
    assert signs(*perplexities) == {"perplexity": True}
    copies = [{"answer_copying": share} for share in (0.05, 0.02, 0.14)]
    assert signs(*copies) == {}


def test_test_pairs_warn_and_do_not_end_a_run() -> None:
    assert signs({"gold_perplexity": 10.0}, {"gold_perplexity": 20.0}) == {"perplexity": False}
    both = {"gold_perplexity": 10.0, "validation_perplexity": 10.0}
    assert signs(both, {**both, "gold_perplexity": 20.0}) == {}


def test_a_reward_falls_when_it_falls_by_more_than_the_errors_of_both() -> None:
    high = {"reward": 1.0, "reward_se": 0.3}
    assert signs(high, {"reward": 0.2, "reward_se": 0.4}) == {}  # 2 * .5 is more than .8
    assert signs(high, {"reward": -0.1, "reward_se": 0.4}) == {"reward": True}


@pytest.mark.parametrize(
    ("metric", "before", "sound", "broken", "name"),
    [
        ("answer_tokens", 20.0, 39.0, 41.0, "length"),
        ("answer_tokens", 20.0, 11.0, 9.0, "length"),
        ("distinct_2", 0.8, 0.41, 0.39, "diversity"),
        ("pair_likeness", 0.1, 0.89, 0.91, "likeness"),
    ],
)
def test_what_goes_along_with_a_collapse_only_warns(
    metric: str, before: float, sound: float, broken: float, name: str
) -> None:
    assert signs({metric: before}, {metric: sound}) == {}
    assert signs({metric: before}, {metric: broken}) == {name: False}


def test_a_teacher_that_was_as_good_two_rounds_ago_is_at_a_plateau() -> None:
    rising, level = (
        [{"preference_accuracy": value} for value in values]
        for values in ((0.5, 0.6, 0.55), (0.6, 0.55, 0.6))
    )
    assert signs(*rising, teacher=True) == {}
    assert signs(*level, teacher=True) == {"plateau": False}
    assert signs(*level) == {}  # of a student that is no sign


def test_thresholds_are_the_configs() -> None:
    rounds = ({"answer_copying": 0.05}, {"answer_copying": 0.3})
    assert signs(*rounds, copying=0.2) == {"copying": True}
    assert signs(*rounds, copying=0.3) == {}


def test_the_round_with_the_best_reward_is_kept_else_the_last_before_the_end() -> None:
    assert best_round(3, {0: {}, 1: {}, 2: {}, 3: {}}) == 2
    rewards = {t: {"reward": value} for t, value in enumerate((0.0, 2.0, 1.0, -5.0))}
    assert best_round(3, rewards) == 1


SMOLLM2 = {
    "published": (
        (17.0, 16.2, 15.8, 16.9, 19.7),
        (0.05, 0.04, 0.16, 0.13, 0.23),
        (0.02, 0.09, 0.10, 0.17, 0.27),
        (2, {"copying"}),
    ),
    "no DPO term": (
        (17.0, 16.2, 15.7, 15.9, 16.5),
        (0.05, 0.06, 0.09, 0.18, 0.40),
        (0.02, 0.07, 0.07, 0.10, 0.11),
        (3, {"copying"}),
    ),
    "initial, gamma 3": (
        (17.0, 16.2, 15.8, 16.3, 17.1),
        (0.05, 0.02, 0.17, 0.21, 0.43),
        (0.02, 0.08, 0.08, 0.13, 0.08),
        (2, {"copying"}),
    ),
    "contrast-mean": (
        (17.0, 16.3, 15.9, 16.6, 19.3),
        (0.05, 0.04, 0.06, 0.12, 0.13),
        (0.02, 0.09, 0.09, 0.17, 0.24),
        (3, {"repetition"}),
    ),
}
"""Rounds 0 to 4 of the runs in docs/results-log.md, "Twelve rounds of it": perplexity, copying,
repetition; the round at whose end each would have ended, and why."""


@pytest.mark.parametrize("recipe", SMOLLM2)
def test_recorded_runs_that_end_in_copies_would_have_ended_early(recipe: str) -> None:
    *series, (expected, why) = SMOLLM2[recipe]
    names = ("validation_perplexity", "answer_copying", "answer_repetition")
    rounds = [dict(zip(names, values, strict=True)) for values in zip(*series, strict=True)]
    ends = [{name for name, end in signs(*rounds[: t + 1]).items() if end} for t in range(1, 5)]
    first = next(t for t, found in enumerate(ends, 1) if found)
    assert (first, ends[first - 1]) == (expected, why)


TESTBED = (
    # seed, published: perplexity, repetition of rounds 0 to 5; ended after; stable: rounds 0 to 12
    (
        (1.58, 1.58, 1.60, 1.64, 1.79, 2.08),
        (0.00, 0.00, 0.01, 0.07, 0.16, 0.21),
        4,
        (1.58, 1.58, 1.60, 1.63, 1.67, 1.65, 1.70, 1.72, 1.70, 1.74, 1.73, 1.73, 1.73),
    ),
    (
        (1.58, 1.58, 1.60, 1.81, 1.99, 2.20),
        (0.01, 0.01, 0.04, 0.10, 0.19, 0.22),
        4,
        (1.58, 1.57, 1.59, 1.67, 1.69, 1.69, 1.71, 1.69, 1.71, 1.70, 1.70, 1.71, 1.70),
    ),
    (
        (1.60, 1.61, 1.62, 1.72, 2.04, 2.43),
        (0.00, 0.01, 0.01, 0.07, 0.10, 0.21),
        4,
        (1.60, 1.61, 1.62, 1.68, 1.77, 1.70, 1.77, 1.71, 1.76, 1.77, 1.77, 1.75, 1.76),
    ),
    (
        (1.55, 1.55, 1.63, 1.92, 2.17, 2.38),
        (0.01, 0.01, 0.04, 0.11, 0.15, 0.17),
        3,
        (1.55, 1.55, 1.59, 1.71, 1.71, 1.75, 1.76, 1.76, 1.78, 1.77, 1.76, 1.77, 1.78),
    ),
    (
        (1.60, 1.60, 1.62, 1.69, 1.95, 2.21),
        (0.01, 0.01, 0.01, 0.05, 0.10, 0.19),
        4,
        (1.60, 1.60, 1.61, 1.62, 1.64, 1.68, 1.69, 1.68, 1.68, 1.68, 1.69, 1.67, 1.67),
    ),
)
"""Validation answers' perplexity in the testbed, seeds 1 to 5 (docs/results-log.md, "A recipe that
holds"): the published recipe is best after round 2 or 3, the stable one rises to round 8 at least.
"""


@pytest.mark.parametrize(("published", "repetition", "after", "stable"), TESTBED)
def test_recorded_testbed_runs_end_where_they_fall_apart_and_only_there(
    published: tuple[float, ...],
    repetition: tuple[float, ...],
    after: int,
    stable: tuple[float, ...],
) -> None:
    falls = [
        {"validation_perplexity": perplexity, "answer_repetition": share}
        for perplexity, share in zip(published, repetition, strict=True)
    ]
    holds = [{"validation_perplexity": perplexity} for perplexity in stable]
    ended = [t for t in range(1, 6) if any(signs(*falls[: t + 1]).values())]
    assert ended[0] == after
    assert not any(any(signs(*holds[: t + 1]).values()) for t in range(1, 13))


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("broken", ["student", "weak-a"])
def test_only_the_students_signs_end_a_run_and_only_if_asked(
    tmp_path: Path, broken: str, stop: bool
) -> None:
    bench = Workbench(tmp_path)

    def measured(policy: str, copying: float) -> tuple[Stage, ...]:
        metrics = {"answer_copying": copying}
        label = f"{policy} {copying}"
        return (bench.commit(label, lambda folder: write_measures(folder, metrics, answers=4)),)

    names, rounds = ("student", "weak-a") * 2, (0, 0, 1, 1)
    shares = [
        0.0 if t == 0 or name != broken else 0.5 for name, t in zip(names, rounds, strict=True)
    ]
    made = bench.run(
        CheckCollapse(
            "round-1/collapse",
            1,
            "student",
            names,
            rounds,
            tuple(map(measured, names, shares)),
            None,
            CollapseConfig(),
            stop,
        )
    )
    [sign] = read_signs(made.path)
    assert (sign.policy, sign.name) == (broken, "copying")
    ends = stop and broken == "student"
    assert (made.meta["stop"], made.meta["kept"]) == (ends, 0 if ends else 1)


def stopping(folder: Path, stop: bool = True, **overrides: Any) -> Path:
    """Write a config whose student falls apart in round 2."""
    return write_config(
        folder,
        rounds=3,
        data={"source": "pairs.jsonl", "splits": SPLITS},
        dpo={"epochs": 4, "learning_rate": 0.3, "batch_size": 4, "gamma": 0.0},
        evaluation={"answers": 4, "stop_on_collapse": stop},
        **overrides,
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("stopped")
    result = run_cli(["run", stopping(home), "--out", home / "run"])
    assert result.code == 0, result.err
    assert "ended after round 2 by evaluation.stop_on_collapse" in result.out
    assert "perplexity of validation answers" in result.err
    return home


def test_a_run_ends_at_the_sign_and_hands_out_the_round_before(stopped: Path) -> None:
    run = RunDir(stopped / "run")
    ended = run.ended()
    assert ended is not None
    assert (ended.round, ended.kept) == (2, 1)
    assert not (run.stages / "round-3").exists()
    assert "1 rounds" in (run.final / "student" / "README.md").read_text()
    with macpo.open_run(run.path) as opened:
        assert opened.policy().round == 1


def test_status_calls_a_run_that_ended_early_finished(stopped: Path) -> None:
    report = status(stopped / "run")
    assert report.state == "finished"
    assert len(report.finished) == report.total
    assert max(row["round"] for row in report.metrics) == 2
    shown = run_cli(["status", stopped / "run"])
    assert "the policies are those of round 1" in " ".join(shown.out.split())


def test_the_same_command_decides_the_same_and_runs_nothing(stopped: Path) -> None:
    before = (stopped / "run" / "metrics.jsonl").read_bytes()
    again = run_cli(["run", stopped / "tiny.yaml", "--out", stopped / "run"])
    assert again.code == 0
    assert "ended after round 2" in again.out
    assert (stopped / "run" / "metrics.jsonl").read_bytes() == before


def test_without_stopping_the_same_run_goes_on_from_there(stopped: Path) -> None:
    config = stopping(stopped, stop=False)
    result = run_cli(["run", config, "--out", stopped / "run"])
    assert result.code == 0
    assert "round-3/student/train" in result.err
    assert "round-2/student/train" not in result.err
    assert RunDir(stopped / "run").ended() is None
    assert "3 rounds" in (stopped / "run" / "final" / "student" / "README.md").read_text()


def test_stopping_needs_prompts_of_its_own(tmp_path: Path) -> None:
    config = write_config(tmp_path, evaluation={"answers": 4, "stop_on_collapse": True})
    with pytest.raises(ConfigError, match=r"data\.splits\.validation"):
        load_config(config)


def test_stopping_needs_rounds(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        method="naive-sft",
        data={"source": "pairs.jsonl", "splits": SPLITS},
        evaluation={"answers": 4, "stop_on_collapse": True},
    )
    lines = [line for line in config.read_text().splitlines() if not line.startswith("rounds")]
    config.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="has no rounds"):
        load_config(config)
