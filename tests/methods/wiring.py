"""Runs that are laid out and not run, told stage by stage in words: who does what, from what.

A row is the stage's name and columns of text:

    round-1/student/train | dpo student+ from init/student/positive | on round-1/student/pairs | ...

`student+` and `student-` are the student's positive and negative policy. What they start `from`, or
whose weights they are `of`, is named by the stage that trained those weights; `base` is the bare
model. A stage without a `seed of` column draws from a seed that no stage before it draws from.

All that these tests know of the fields of stages is in this file.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from macpo.agents import Agent, Policy, Team
from macpo.config import RunConfig
from macpo.methods.build import build_plan
from macpo.program import Plan
from macpo.seeds import digest
from tests.workbench import make_agent

Table = dict[str, str]
"""Rows by stage name; columns are separated by ` | `."""

CONFIG: dict[str, Any] = {
    "name": "wiring",
    "rounds": 2,
    "data": {"source": "data.jsonl"},
    "student": {"model": "student"},
    "teachers": [{"name": "a", "model": "a"}, {"name": "b", "model": "b"}],
    "sft": {"learning_rate": 1e-5},
    "negative_sft": {"learning_rate": 2e-5},
    "dpo": {"learning_rate": 3e-5},
    "evaluation": {"answers": 4},
}
"""Two teachers and two rounds; the three sections of training differ."""


def lay_out(
    method: dict[str, Any] | None = None,
    *,
    own: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Plan:
    """Return the plan of `CONFIG` with another method.

    Args:
        method: the `method` section.
        own: by agent, training sections of its own, as `macpo.agents.assemble_team` merges them.
        **changes: top-level keys of the config, replaced as a whole.
    """
    chosen = {"method": method or {}}
    models = {key: CONFIG[key] for key in ("name", "data", "student", "teachers")}
    unused = RunConfig.model_validate({**models, **chosen}).method.unused
    asked = {key: value for key, value in CONFIG.items() if key not in unused}
    config = RunConfig.model_validate({**asked, **chosen, **changes})

    def agent(name: str) -> Agent:
        sections = {key: getattr(config, key) for key in ("sft", "negative_sft", "dpo")}
        for key, values in ((own or {}).get(name) or {}).items():
            sections[key] = sections[key].model_copy(update=dict(values))
        return make_agent(
            Path(name), name=name, tuning=config.tuning, limits=config.limits, **sections
        )

    names = ("student", *(teacher.name for teacher in config.active_teachers))
    student, *teachers = map(agent, names)
    return build_plan(config, Team(student, tuple(teachers)), "digest of the data")


def table(plan: Plan) -> Table:
    """Tell every stage of a plan."""
    rows: Table = {}
    seeds: dict[int, str] = {}
    for stage in plan:
        columns = _COLUMNS[type(stage).__name__](stage)
        if getattr(stage, "seed", None) is not None:
            first = seeds.setdefault(stage.seed, label(stage))
            columns += [f"seed of {first}"] if first != label(stage) else []
        assert label(stage) not in rows, f"two stages are called {label(stage)}"
        rows[label(stage)] = " | ".join(columns)
    return rows


def made(rows: Table) -> Table:
    """Return the rows without those that measure."""
    measures = (
        *("/test-answers", "/evaluate", "/answer-metrics", "/oracle", "/pairs-oracle"),
        *("/pair-metrics", "/validate", "/collapse"),
    )
    return {name: row for name, row in rows.items() if not name.endswith(measures)}


def checks(rounds: int, everybody: Sequence[str], learning: Sequence[str]) -> Table:
    """Return the rows that look for signs of collapse: in all at first, then in who learns."""

    def measuring(when: str, agents: Sequence[str]) -> str:
        kinds = ("evaluate", "answer-metrics", *(() if when == "init" else ("pair-metrics",)))
        return ", ".join(f"{when}/{agent}/{kind}" for agent in agents for kind in kinds)

    rows: Table = {}
    for t in range(1, rounds + 1):
        first = f"{measuring('init', everybody)}, " if t == 1 else ""
        after = f" | after round-{t - 1}/collapse" if t > 1 else ""
        found = measuring(f"round-{t}", learning)
        rows[f"round-{t}/collapse"] = f"signs of collapse in {first}{found}{after}"
    return rows


def read(text: str, rounds: int = 2) -> Table:
    """Read a table written as `table` tells it.

    A row goes on in the lines below it that are further in; `#` starts a comment; spaces count as
    one. A row with `round-t` in it stands for one of each round. There `NAME(t)` is the stage that
    trained NAME's positive policy in that round, `NAME(t-1)` the one before, of which `NAME(0)` is
    the first.
    """
    plain = textwrap.dedent(re.sub(r"[ ]*#.*", "", text))
    joined = re.sub(r"\n[ ]+", " ", plain)
    rows: Table = {}
    for row in (" ".join(line.split()) for line in joined.splitlines()):
        for t in range(1, rounds + 1) if "round-t" in row else (0,):
            name, _, columns = _in_round(row, t).partition(" | ")
            if name:
                assert name not in rows, f"{name} is written twice"
                rows[name] = columns
    return rows


def _in_round(row: str, t: int) -> str:
    """Put a round's number into a row."""

    def trained(found: re.Match[str]) -> str:
        number = {"t": t, "t-1": t - 1, "0": 0}[found[2]]
        return f"round-{number}/{found[1]}/train" if number else f"init/{found[1]}/positive"

    return re.sub(r"(\w+)\((t|t-1|0)\)", trained, row.replace("round-t", f"round-{t}"))


def difference(before: Table, after: Table) -> Table:
    """Tell what `after` has anew (`+ name`), no longer (`- name`) and otherwise (`~ name`)."""
    gone = {f"- {name}": "" for name in before if name not in after}
    new = {f"+ {name}": row for name, row in after.items() if name not in before}
    other = {
        f"~ {name}": row for name, row in after.items() if name in before and row != before[name]
    }
    return {**gone, **new, **other}


def label(stage: Any) -> str:
    """Return a stage's name, in which the text of a system prompt stands for its digest."""
    system = getattr(stage, "system", "")
    return str(stage.name).replace(digest(system)[:6], f"'{system}'") if system else stage.name


def who(policy: Policy) -> str:
    """Return `student+` or `student-`."""
    return policy.agent.name + {"positive": "+", "negative": "-"}[policy.role]


def weights(policy: Policy) -> str:
    """Return the name of the stage that trained a policy's weights."""
    return "base" if policy.weights is None else label(policy.weights)


def of(policy: Policy) -> str:
    """Return a policy with its weights: `student+ of init/student/positive`."""
    return f"{who(policy)} of {weights(policy)}"


def names(stages: Iterable[Any]) -> str:
    return ", ".join(map(label, stages))


def _start(verb: str, stage: Any) -> str:
    return f"{verb} {who(stage.start)} from {weights(stage.start)}"


def _section(stage: Any) -> str:
    """Name the config section that a training stage follows, and what differs from it."""
    agent, config = stage.start.agent, stage.config
    for name in ("sft", "negative_sft", "dpo"):
        section = getattr(agent, name)
        if type(config) is type(section):
            changed = {key: value for key, value in config if value != getattr(section, key)}
            return " ".join([f"as {name}", *(f"{k} {v:g}" for k, v in changed.items())])
    raise AssertionError(f"{stage.name} follows no section of its agent")


def _respond(stage: Any) -> list[str]:
    first = "" if stage.limit is None else f" first {stage.limit}"
    columns = [
        f"answer {of(stage.policy)}",
        f"to {label(stage.data)} {stage.split}{first}",
    ]
    if stage.system:
        columns.append(f"under '{stage.system}'")
    if stage.away_from is not None:
        columns.append(f"away from {of(stage.away_from)} by {stage.strength:g}")
    if stage.plausible:
        columns.append(f"where plausible to {stage.plausible:g}")
    return columns


def _filtered(stage: Any) -> list[str]:
    columns = [
        f"chosen best {stage.top_k} by {stage.filter} of {names(stage.positives)}",
        f"scored by {of(stage.scores.policy)} in {label(stage.scores)}",
    ]
    if stage.negative_scores is not None:
        against = stage.negative_scores
        columns.append(f"against {of(against.policy)} in {label(against)}")
    if stage.usual is not None:
        columns.append(f"usual as {label(stage.usual)}")
    return [*columns, *_rejected(stage)]


def _rejected(stage: Any) -> list[str]:
    columns = [f"rejected {label(stage.negatives)}"]
    if stage.own is not None:
        columns.append(f"or refused of {label(stage.own)}")
    if stage.guard is not None:
        columns.append(f"guarded by {label(stage.guard)}")
    return columns


def _ratios(stage: Any) -> str:
    """Tell whose log-ratios count how much, if the scores are of the answers that are judged."""
    assert all(scores.answers == stage.answers for scores in (*stage.ours, *stage.theirs))
    ratios = []
    for weight, ours, theirs in zip(stage.weights, stage.ours, stage.theirs, strict=True):
        beta = ours.policy.agent.dpo.beta
        factor = "beta" if weight == beta else f"{weight:g}"
        ratios.append(f"{factor} x {label(ours)} less {label(theirs)}")
    return ", ".join(ratios)


def _back(stage: Any) -> list[str]:
    """Tell to whom a trained policy goes back, if to anybody."""
    return [] if stage.initial is None else [f"back by {stage.anchor:g} to {of(stage.initial)}"]


def _dpo(stage: Any) -> list[str]:
    scores = stage.reference_scores
    return [
        _start("dpo", stage),
        f"on {label(stage.pairs)}",
        f"reference {of(scores.policy)} in {label(scores)}",
        _section(stage),
        *_back(stage),
    ]


_COLUMNS: dict[str, Callable[[Any], list[str]]] = {
    "SplitData": lambda s: ["split"],
    "DatasetPairs": lambda s: [f"chosen and rejected of {label(s.data)} {s.split}"],
    "SFTOnDataset": lambda s: [
        _start("sft", s),
        f"on {label(s.data)} {s.split} {s.side}",
        _section(s),
    ],
    "SFTOnAnswers": lambda s: [_start("sft", s), f"on {label(s.answers)}", _section(s)],
    "ConfidentSFT": lambda s: [
        _start("confident sft", s),
        f"on {label(s.answers)}",
        f"weight {s.weight:g} after {s.warmup:g} where sure of {s.threshold:g}",
        _section(s),
    ],
    "SFTOnPairs": lambda s: [
        _start("sft", s),
        f"on chosen of {label(s.pairs)}",
        _section(s),
        *_back(s),
    ],
    "TrainDPO": _dpo,
    "TrainWeightedDPO": lambda s: [*_dpo(s), f"weighed by {label(s.judgements)}"],
    "FitLogRatios": lambda s: [
        _start("fit", s),
        f"on {names(s.answers)}",
        f"reference {of(s.reference_scores.policy)} in {label(s.reference_scores)}",
        f"{s.gamma:g} x log-ratio to {label(s.judgements)}",
        _section(s),
    ],
    "Respond": _respond,
    "ScoreResponses": lambda s: [f"score {of(s.policy)}", f"on {names(s.answers)}"],
    "ScorePairs": lambda s: [
        f"score {of(s.policy)}",
        f"on {label(s.pairs)}",
        *(["without ends"] if s.without_ends else []),
    ],
    "FilteredPairs": _filtered,
    "DirectPairs": lambda s: [f"chosen {label(s.positives)}", *_rejected(s)],
    "JoinedPairs": lambda s: [f"all of {names(s.parts)}"],
    "ReplayedPairs": lambda s: [f"{label(s.pairs)}", f"with {s.share:g} of {label(s.labels)}"],
    "SetLimits": lambda s: [
        f"limits at {s.quantile:g} of {names(s.answers)}",
        f"as {', '.join(a.name for a in s.readers)} read them",
        *(
            f"{name} {getattr(s, name):g}"
            for name in ("unfinished", "repetition", "sentences", "copying")
            if getattr(s, name) is not None
        ),
    ],
    "Guard": lambda s: [
        f"guard by {label(s.limits)} {names(s.answers)}",
        f"as {', '.join(a.name for a in s.readers)} read them",
    ],
    "RankedPairs": lambda s: [
        f"chosen best, rejected worst of {names(s.answers)}",
        f"judged in {names(s.judgements)}",
    ],
    "UnlabelledAnswers": lambda s: [f"answer {s.place} of each pair of {label(s.data)} {s.split}"],
    "LogRatios": lambda s: [
        f"{s.aggregate} of {_ratios(s)}",
        f"on {names(s.answers)}",
    ],
    "BestAnswers": lambda s: [
        f"best of {names(s.answers)}",
        f"judged in {label(s.judgements)}",
    ],
    "WorstAnswers": lambda s: [
        f"worst of {names(s.answers)}",
        f"scored by {of(s.scores.policy)} in {label(s.scores)}",
    ],
    "Grade": lambda s: [
        f"grade {of(s.policy)}",
        f"on {names(s.answers)}",
        f"'{s.question}' {'<'.join(s.grades)}",
    ],
    "Compare": lambda s: [
        f"compare {of(s.policy)}",
        f"on {label(s.one)} and {label(s.other)}",
        f"'{s.question}' {' or '.join(s.labels)}",
    ],
    "CheckCollapse": lambda s: [
        f"signs of collapse in {', '.join(map(names, s.measured))}",
        *([f"after {label(s.before)}"] if s.before else []),
    ],
    "Validate": lambda s: [f"measure {of(s.policy)}", f"on {label(s.data)} validation"],
    "Evaluate": lambda s: [f"measure {of(s.policy)}", f"on {label(s.data)} test"],
    "MeasureAnswers": lambda s: [f"measure {label(s.answers)}", f"as {s.reader.name} reads them"],
    "MeasurePairs": lambda s: [f"measure {label(s.pairs)}"],
    "OracleScores": lambda s: [f"oracle on {label(s.answers)}"],
    "PairsOracle": lambda s: [f"oracle on {label(s.pairs)}"],
}
