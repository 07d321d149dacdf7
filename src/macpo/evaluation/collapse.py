"""Signs that a run falls apart, looked for after every round, and the decision to end it.

What is looked at are the metrics that the round's evaluators left, so nothing is measured twice.
Each sign compares a policy with itself in earlier rounds; docs/collapse.md says for each why, and
at which round past runs would have ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from macpo.config.collapse import CollapseConfig
from macpo.evaluation.measures import read_measures
from macpo.metrics import metric
from macpo.run_directory import COLLAPSE
from macpo.stage import Stage, StageContext

COLLAPSE_FILE = "collapse.json"
PATIENCE = 2
"""Rounds in which a teacher does not get better before that is called a plateau."""

SignName = Literal[
    "reward",
    "perplexity",
    "repetition",
    "copying",
    "refused",
    "length",
    "diversity",
    "likeness",
    "plateau",
]

History = Mapping[int, Mapping[str, float]]
"""A policy's metrics by round (0: before the first)."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of collapse in one policy after one round.

    `ends` says that it is evidence enough to end a run; the others only warn.
    """

    policy: str
    round: int
    name: SignName
    text: str
    ends: bool


def find_signs(
    policy: str, t: int, history: History, limits: CollapseConfig, *, teacher: bool = False
) -> list[Sign]:
    """Return the signs of collapse in a policy after round t.

    Args:
        policy: its name, for the signs.
        t: the round, at least 1.
        history: its metrics in rounds 0 to t; what was not measured gives no sign.
        limits: from where on a change is a sign.
        teacher: look for a plateau too, which says that there is no more to be learned from it.
    """
    looks = [_reward, _perplexity, _form, _candidates, _warnings, *([_plateau] if teacher else [])]
    return [
        Sign(policy, t, name, text, ends)
        for look in looks
        for name, text, ends in look(t, history, limits)
    ]


_Found = Iterator[tuple[SignName, str, bool]]


def _reward(t: int, history: History, limits: CollapseConfig) -> _Found:
    """A reward below the best so far by more than the error of both."""
    before, now = _series(history, "reward", t)
    errors, error = _series(history, "reward_se", t)
    if not before or now is None:
        return
    best = max(before, key=lambda r: before[r])
    noise = ((error or 0.0) ** 2 + errors.get(best, 0.0) ** 2) ** 0.5
    if before[best] - now > limits.reward * noise:
        yield "reward", f"reward {now:.3g}, after {before[best]:.3g} in round {best}", True


def _perplexity(t: int, history: History, limits: CollapseConfig) -> _Found:
    """Good answers become less likely; the test split's only warn, for a run may not obey them."""
    held_out = "validation_perplexity" in history.get(t, {})
    name = "validation_perplexity" if held_out else "gold_perplexity"
    before, now = _series(history, name, t)
    if not before or now is None:
        return
    best = min(before, key=lambda r: before[r])
    rise = now / before[best] - 1
    if rise > limits.perplexity:
        yield (
            "perplexity",
            f"{metric(name).title} {now:.4g}, {_percent(rise)} above its lowest (round {best})",
            held_out,
        )


def _form(t: int, history: History, limits: CollapseConfig) -> _Found:
    """Answers that repeat themselves or their prompts more than they did before the first round."""
    for name, limit in (("repetition", limits.repetition), ("copying", limits.copying)):
        before, now = _series(history, f"answer_{name}", t)
        if 0 in before and now is not None and now - before[0] > limit:
            known: SignName = "repetition" if name == "repetition" else "copying"
            yield (
                known,
                f"{metric(f'answer_{name}').title} {_percent(now)}, {_percent(before[0])} in "
                "round 0",
                True,
            )


def _candidates(t: int, history: History, limits: CollapseConfig) -> _Found:
    """Answers that might be chosen, before any filter: the guard refuses more than at first."""
    before, now = _series(history, "refused_candidates", t)
    if not before or now is None:
        return
    first = min(before)
    if now - before[first] > limits.refused:
        yield (
            "refused",
            f"{metric('refused_candidates').title} {_percent(now)}, {_percent(before[first])} in "
            f"round {first}",
            True,
        )


def _warnings(t: int, history: History, limits: CollapseConfig) -> _Found:
    """What goes along with a collapse, and with some progress as well."""
    before, now = _series(history, "answer_tokens", t)
    if before.get(0) and now is not None:
        factor = now / before[0]
        if not 1 / limits.length <= factor <= limits.length:
            yield "length", f"answers of {now:.0f} tokens, {before[0]:.0f} in round 0", False
    before, now = _series(history, "distinct_2", t)
    if before.get(0) and now is not None and now < limits.diversity * before[0]:
        yield (
            "diversity",
            f"{metric('distinct_2').title} {_percent(now)}, {_percent(before[0])} in round 0",
            False,
        )
    _, now = _series(history, "pair_likeness", t)
    if now is not None and now > limits.likeness:
        yield (
            "likeness",
            f"chosen and rejected answers share {_percent(now)} of their words",
            False,
        )


def _plateau(t: int, history: History, limits: CollapseConfig) -> _Found:
    """A teacher that was as good two rounds ago or earlier."""
    name = next(
        (n for n in ("reward", "validation_accuracy", "preference_accuracy") if n in history[t]),
        None,
    )
    if name is None or t < PATIENCE:
        return
    values = {r: found[name] for r, found in history.items() if name in found}
    best = max(values, key=lambda r: values[r])
    if t - best >= PATIENCE:
        yield "plateau", f"no better in {metric(name).title} since round {best}", False


def _series(history: History, name: str, t: int) -> tuple[dict[int, float], float | None]:
    """Return a metric by round before t, and after round t."""
    before = {r: found[name] for r, found in history.items() if r < t and name in found}
    return before, history.get(t, {}).get(name)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


@dataclass(frozen=True, eq=False)
class CheckCollapse(Stage):
    """Looks for signs of collapse after a round and, with `stop`, decides whether the run ends.

    `measured[i]` are the stages that measured `policies[i]` after round `rounds[i]`; the first
    check takes round 0 in too, later ones what `before` has gathered.
    """

    kind: ClassVar[str] = COLLAPSE

    round: int
    student: str
    policies: tuple[str, ...]
    rounds: tuple[int, ...]
    measured: tuple[tuple[Stage, ...], ...]
    before: Stage | None
    limits: CollapseConfig
    stop: bool

    @property
    def may_end_run(self) -> bool:
        """See `Stage.may_end_run`."""
        return self.stop

    def ends_run(self, meta: Mapping[str, Any]) -> bool:
        """See `Stage.ends_run`."""
        return bool(meta["stop"])

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Write collapse.json: the signs, and the metrics that they were found in."""
        history = {} if self.before is None else _read_history(context.path(self.before))
        for policy, t, stages in zip(self.policies, self.rounds, self.measured, strict=True):
            found: dict[str, float] = {}
            for stage in stages:
                found |= read_measures(context.path(stage)).metrics
            history.setdefault(policy, {})[t] = found
        signs = [
            sign
            for policy, own in history.items()
            if self.round in own
            for sign in find_signs(
                policy, self.round, own, self.limits, teacher=policy != self.student
            )
        ]
        ends = self.stop and any(sign.ends and sign.policy == self.student for sign in signs)
        _write(signs, history, context.output)
        return {
            "signs": [f"{sign.policy}: {sign.text}" for sign in signs],
            "stop": ends,
            "kept": best_round(self.round, history[self.student]) if ends else self.round,
        }


def best_round(t: int, history: History) -> int:
    """Return which round's policies a run that ends after round t hands out.

    That with the best reward before it, if a reward model judged; else the last one before it.
    """
    rewards, _ = _series(history, "reward", t)
    return max(rewards, key=lambda r: rewards[r]) if rewards else t - 1


def read_signs(folder: Path) -> list[Sign]:
    """Return the signs in a check's artifact."""
    value = json.loads((folder / COLLAPSE_FILE).read_text(encoding="utf-8"))
    return [Sign(**sign) for sign in value["signs"]]


def _write(
    signs: Sequence[Sign], history: Mapping[str, Mapping[int, Mapping[str, float]]], folder: Path
) -> None:
    value = {"signs": [asdict(sign) for sign in signs], "history": history}
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    (folder / COLLAPSE_FILE).write_text(text + "\n", encoding="utf-8")


def _read_history(folder: Path) -> dict[str, dict[int, Mapping[str, float]]]:
    value = json.loads((folder / COLLAPSE_FILE).read_text(encoding="utf-8"))
    return {
        policy: {int(t): found for t, found in rounds.items()}
        for policy, rounds in value["history"].items()
    }
