"""What an evaluator is: options, and the stages that measure a policy after a round."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from macpo.config.evaluators import EVALUATORS, EvaluatorConfig

if TYPE_CHECKING:
    from macpo.agents import Policy
    from macpo.config import RunConfig
    from macpo.stage import Stage


@dataclass(frozen=True)
class Subject:
    """Whom an evaluator measures: a policy as it is after a round.

    Attributes:
        place: first part of its stages' names, such as `round-2/student`.
        agent: whose policy.
        round: after which; 0 is before the first.
        dtype: of the run's models, `float32` or `bfloat16`: what its machine is good at.
        data: the stage whose artifact holds the splits; the test split is for evaluators.
        answers: the stage with the policy's answers to test prompts; None without any.
        pairs: the stage with the pairs that it learned from in that round; None without any.
        first: the same agent in round 0, whom the same evaluators measure; None in round 0.
        find_policy: returns `policy`.
    """

    place: str
    agent: str
    round: int
    dtype: str
    data: Stage
    answers: Stage | None
    pairs: Stage | None
    first: Subject | None
    find_policy: Callable[[], Policy] = field(repr=False)

    @cached_property
    def policy(self) -> Policy:
        """Who it is, with its weights after that round.

        Ask for it only where a model or a tokenizer is needed: when a run is evaluated afterwards,
        its models are looked for at this moment.
        """
        return self.find_policy()


class Evaluator(EvaluatorConfig):
    """Base of all evaluators.

        @register_evaluator
        class Mine(Evaluator):
            name: Literal["mine"] = "mine"

            def lay_out(self, subject: Subject) -> Iterable[Stage]:
                ...

    Fields are options. They are read whenever a config is, so an evaluator's module imports nothing
    heavy but inside of methods.
    """

    def preflight(self, config: RunConfig) -> Iterator[str]:
        """Look for what this evaluator needs besides the run, before anybody works.

        Args:
            config: of the run.

        Yields:
            What the user should know of it.

        Raises:
            MacpoError: something that it needs is not there.
        """
        yield from ()

    @abstractmethod
    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """Return the stages that measure a policy.

        Each leaves measurements (`macpo.evaluation.measures.write_measures`); a stage that another
        of them reads comes first. Answers are there to be read, not to be generated again.
        """


EvaluatorKind = TypeVar("EvaluatorKind", bound=Evaluator)


def register_evaluator(kind: type[EvaluatorKind]) -> type[EvaluatorKind]:
    """Make an evaluator known by its name, for configs; used as a decorator.

    Raises:
        ConfigError: another evaluator has that name.
        TypeError: it is no `Evaluator`, or has no `name` with a default.
    """
    if not (isinstance(kind, type) and issubclass(kind, Evaluator)):
        raise TypeError(f"{kind!r} is no class derived from macpo.evaluation.Evaluator")
    name = kind.model_fields["name"].default
    if not isinstance(name, str):
        raise TypeError(f'{kind.__name__}: give it a name: Literal["mine"] = "mine"')
    EVALUATORS.register(name, kind)
    return kind


def chosen_evaluators(config: RunConfig) -> tuple[Evaluator, ...]:
    """Return a run's evaluators: those that its config lists, else all that measure by default."""
    section = config.evaluation
    chosen = section.evaluators
    if chosen is None:
        kinds = [kind for kind in EVALUATORS.all().values() if kind.default]
        defaults = [kind.model_validate({}) for kind in kinds]
        chosen = tuple(
            e for e in defaults if not any(e.faults(config.data.source, section.answers))
        )
    found = []
    for evaluator in chosen:
        assert isinstance(evaluator, Evaluator)  # `register_evaluator` takes no other
        found.append(evaluator)
    return tuple(found)
