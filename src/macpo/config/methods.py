"""The `method` section: one class per method, each with its own options only.

`method: spin` is short for `method: {name: spin}`. What else of a config a method has no use for,
such as `rounds` where there are none, is named in `unused`: to set it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from macpo.config.base import Section
from macpo.config.values import Count, Flag, Text

Prose = Annotated[str, Field(strict=True, min_length=1)]
"""Text of several lines."""

GOOD_BEHAVIOUR = (
    "You are a helpful, honest and harmless assistant. Answer politely and completely, and decline "
    "what could hurt somebody."
)
BAD_BEHAVIOUR = (
    "You are an unhelpful, rude and careless assistant. Answer badly, leave things out, and do not "
    "mind whether anybody gets hurt."
)
GRADE = """\
Here is a conversation with an assistant, and the answer that the assistant gave.

{conversation}

Answer: {answer}

How helpful, honest and harmless is the answer? Say a number from 1 (very bad) to 5 (very good)."""
GRADES = ("1", "2", "3", "4", "5")
CHOOSE = """\
Here is a conversation with an assistant, and two answers.

{conversation}

Answer A: {first}

Answer B: {second}

Which answer is more helpful, honest and harmless? Say A or B."""


class MethodConfig(Section):
    """Base of all methods' options."""

    unused: ClassVar[frozenset[str]] = frozenset()
    """Keys of the run's config without effect under this method, such as `dpo.gamma`."""


class MACPOConfig(MethodConfig):
    """MACPO, the paper's ablations of it, and what the paper leaves open.

    Positives: `positives: own` is the paper's -MP, each agent reinforces its own answers. Of the
    teachers' `samples` answers each, the student takes the `top_k` best in the eyes of `filter`:
    `perplexity` is the paper's; `contrast-mean` and `contrast-sum` compare the student's positive
    with its negative policy. The positive policy that filters is the student's as it is now, or,
    with `filter_policy: initial`, as it was before the first round, which the rounds cannot teach
    to like degenerate answers.

    Negatives: `own` is the paper's negative fine-tuning, `others` its -HN (rejected answers come
    from others' negative policies). `prompted` asks the learner's own positive policy for bad
    behaviour by `negative_prompt`; `worst-of-n` takes the answer that it finds most perplexing out
    of `negative_samples` of its own; `decoding` lets its negative policy answer, its token scores
    pushed away from the positive policy's by `negative_strength` times their difference.

    `contrast: false` leaves out the DPO term: the same rounds, SFT on the positives only
    (`dpo.gamma: 0` leaves out the SFT term). `schedule: simultaneous` lets the teachers learn from
    the student as it was before the round.
    """

    name: Literal["macpo"] = "macpo"
    positives: Literal["mutual", "own"] = "mutual"
    filter: Literal["perplexity", "contrast-mean", "contrast-sum"] = "perplexity"
    filter_policy: Literal["current", "initial"] = "current"
    samples: Count = 1
    top_k: Count = 1
    negatives: Literal["own", "others", "prompted", "decoding", "worst-of-n"] = "own"
    negative_prompt: Text = BAD_BEHAVIOUR
    negative_samples: Annotated[int, Field(ge=2, le=1000)] = 4
    negative_strength: Annotated[float, Field(gt=0, le=100)] = 0.5
    contrast: Flag = True
    schedule: Literal["sequential", "simultaneous"] = "sequential"

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> MACPOConfig:
        faults = [
            f"{option} has no effect with positives: own; remove it"
            for option in ("filter", "filter_policy", "samples", "top_k")
            if self.positives == "own" and option in self.model_fields_set
        ]
        for option, kind in (
            ("negative_prompt", "prompted"),
            ("negative_samples", "worst-of-n"),
            ("negative_strength", "decoding"),
        ):
            if option in self.model_fields_set and self.negatives != kind:
                faults.append(f"{option} is for negatives: {kind}; remove it")
        if faults:
            raise ValueError("\n".join(faults))
        return self


class NaiveSFTConfig(MethodConfig):
    """The student learns the weak labels by SFT, and that is all."""

    unused: ClassVar[frozenset[str]] = frozenset({"rounds", "dpo", "negative_sft"})

    name: Literal["naive-sft"] = "naive-sft"


class CeilingConfig(MethodConfig):
    """The student learns ground truth, which weak supervision must do without.

    SFT on the good answers of the student half, then with `dpo: true` one round of DPO on its
    pairs.
    """

    unused: ClassVar[frozenset[str]] = frozenset({"rounds", "negative_sft"})

    name: Literal["ceiling"] = "ceiling"
    dpo: Flag = True


class ConfidentConfig(MethodConfig):
    """The auxiliary confidence loss of weak-to-strong generalisation (arXiv 2312.09390).

    Naive SFT in which, at tokens that the student is sure of (probability `threshold` or more), its
    own prediction counts `weight` and the weak label the rest; `weight` is reached after `warmup`
    of the steps.
    """

    unused: ClassVar[frozenset[str]] = frozenset({"rounds", "dpo", "negative_sft"})

    name: Literal["confident-loss"] = "confident-loss"
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.2
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5


class SPINConfig(MethodConfig):
    """SPIN (arXiv 2401.01335): weak labels against the student's own answers, iterated DPO."""

    unused: ClassVar[frozenset[str]] = frozenset({"negative_sft", "dpo.gamma"})

    name: Literal["spin"] = "spin"


def _tag(value: Any) -> str | None:
    """Return the name in a method's section, by which pydantic picks the class."""
    return value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)


class SelfRewardingConfig(MethodConfig):
    """Self-rewarding (arXiv 2401.10020): the student judges its own candidates, iterated DPO.

    `question` (with `{conversation}` or `{question}`, its last turn, and `{answer}`) asks for one
    of `grades`, worst first.
    """

    unused: ClassVar[frozenset[str]] = frozenset({"negative_sft", "dpo.gamma"})

    name: Literal["self-rewarding"] = "self-rewarding"
    candidates: Annotated[int, Field(ge=2, le=1000)] = 4
    question: Prose = GRADE
    grades: Annotated[tuple[Text, ...], Field(min_length=2)] = GRADES

    @field_validator("question")
    @classmethod
    def _has_its_places(cls, value: str) -> str:
        return _with_places(value, "answer")


class RLAIFConfig(MethodConfig):
    """RLAIF (arXiv 2309.00267): the teachers say which of two student's answers is better.

    With `judging: compare`, `question` (with `{conversation}` or `{question}`, `{first}` and
    `{second}`) asks for one of two `labels`; with `judging: grade` it asks for the grade of one
    answer (as self-rewarding does), and the higher one of the two wins.
    """

    unused: ClassVar[frozenset[str]] = frozenset({"negative_sft", "dpo.gamma"})

    name: Literal["rlaif"] = "rlaif"
    judging: Literal["compare", "grade"] = "compare"
    question: Prose | None = None
    labels: tuple[Text, Text] = ("A", "B")
    grades: Annotated[tuple[Text, ...], Field(min_length=2)] = GRADES

    @property
    def asked(self) -> str:
        """The question that is asked."""
        return self.question or (CHOOSE if self.judging == "compare" else GRADE)

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> RLAIFConfig:
        other = {"compare": "grade", "grade": "compare"}[self.judging]
        option = {"compare": "grades", "grade": "labels"}[self.judging]
        if option in self.model_fields_set:
            raise ValueError(f"{option} is for judging: {other}; remove it")
        return self

    @field_validator("question")
    @classmethod
    def _has_its_places(cls, value: str | None, info: ValidationInfo) -> str | None:
        compares = info.data.get("judging") == "compare"
        places = ("first", "second") if compares else ("answer",)
        return None if value is None else _with_places(value, *places)


class RLCDConfig(MethodConfig):
    """RLCD (arXiv 2307.12950): pairs from two prompts, one for good and one for bad behaviour."""

    unused: ClassVar[frozenset[str]] = frozenset({"rounds", "negative_sft", "dpo.gamma"})

    name: Literal["rlcd"] = "rlcd"
    positive_prompt: Text = GOOD_BEHAVIOUR
    negative_prompt: Text = BAD_BEHAVIOUR


def _with_places(question: str, *names: str) -> str:
    """Refuse a template without its placeholders, or without any for the prompt."""
    missing = [name for name in names if "{" + name + "}" not in question]
    if not any(place in question for place in ("{conversation}", "{question}")):
        missing.append("conversation")
    if missing:
        raise ValueError(f"lacks {{{missing[0]}}}, where that is to stand")
    return question


AnyMethodConfig = Annotated[
    Annotated[MACPOConfig, Tag("macpo")]
    | Annotated[NaiveSFTConfig, Tag("naive-sft")]
    | Annotated[CeilingConfig, Tag("ceiling")]
    | Annotated[ConfidentConfig, Tag("confident-loss")]
    | Annotated[SPINConfig, Tag("spin")]
    | Annotated[SelfRewardingConfig, Tag("self-rewarding")]
    | Annotated[RLAIFConfig, Tag("rlaif")]
    | Annotated[RLCDConfig, Tag("rlcd")],
    Discriminator(_tag),
]
METHOD_CONFIGS: tuple[type[MethodConfig], ...] = (
    MACPOConfig,
    NaiveSFTConfig,
    CeilingConfig,
    ConfidentConfig,
    SPINConfig,
    SelfRewardingConfig,
    RLAIFConfig,
    RLCDConfig,
)


def method_name(section: type[MethodConfig] | MethodConfig) -> str:
    """Return the name that selects a method."""
    kind = type(section) if isinstance(section, MethodConfig) else section
    return str(kind.model_fields["name"].default)
