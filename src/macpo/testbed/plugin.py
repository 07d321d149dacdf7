"""The testbed as a plugin: `testbed:NUMBER` as data, `testbed:NAME` as a model, and the oracle.

The core knows nothing of the testbed: this module registers what it adds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from macpo.data.rows import RawRow, RowSource
from macpo.data.sources import DATA_SCHEMES, HUB_OPTIONS
from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator
from macpo.models.cache import build_once, model_folder
from macpo.models.sources import MODEL_SCHEMES, ResolvedModel, refuse_options
from macpo.testbed.bases import base_digest
from macpo.testbed.dataset import dataset_digest, preference_examples
from macpo.testbed.metrics import register_metrics
from macpo.testbed.naming import SCHEME, is_testbed, preset_of, size_of

if TYPE_CHECKING:
    from macpo.config import DataConfig, ModelConfig
    from macpo.stage import Stage

DATA_SEED = 0
"""The testbed's preference data is one long series; a run's seed decides how it is divided."""

logger = logging.getLogger("macpo")


class TestbedData:
    """Preference data of the testbed's world, in TRL's format; drawn anywhere in a moment."""

    what = "the testbed's"
    unused: tuple[str, ...] = HUB_OPTIONS

    def open(self, config: DataConfig) -> RowSource:
        """See `macpo.data.sources.DataSource.open`."""
        examples = preference_examples(size_of(config.source), DATA_SEED)
        rows = (RawRow(number, example.to_json()) for number, example in enumerate(examples, 1))
        return RowSource(config.source, "row", rows, len(examples))

    def digest(self, config: DataConfig) -> str:
        """See `macpo.data.sources.DataSource.digest`."""
        return dataset_digest(size_of(config.source), DATA_SEED)

    def is_here(self, config: DataConfig) -> bool:
        """See `macpo.data.sources.DataSource.is_here`."""
        return True


def resolve_base(model: ModelConfig, fetch: bool) -> ResolvedModel:
    """Take a base model of the testbed, pretrained from scratch."""
    refuse_options(model, "a base of the testbed", "revision", "trust_remote_code")
    preset = preset_of(model.source)
    base_key = base_digest(preset)
    key = f"testbed-{preset}-{base_key[:32]}"
    if fetch:
        from pathlib import Path

        def tell(done: int, total: int, **fields: float) -> None:
            if done % max(1, total // 4) == 0:
                logger.info("  %s: %d of %d steps, loss %.3f", preset, done, total, fields["loss"])

        def make(folder: Path) -> None:
            from macpo.testbed.pretraining import build_base

            logger.info("pretraining the testbed's base %s from scratch", preset)
            build_base(preset, folder, tell)

        build_once(key, make)
    made = model_folder(key)
    local = made.is_dir()
    return ResolvedModel(
        name=model.source,
        location=str(made if local else model.source),
        revision=None,
        digest=base_key,
        local=local,
    )


@register_evaluator
class OracleEvaluator(Evaluator):
    """The oracle's verdicts on a policy's answers, and on the pairs that it learned from."""

    default: ClassVar[bool] = True

    name: Literal["oracle"] = "oracle"

    def faults(self, source: str, answers: int) -> Iterator[str]:
        """See `EvaluatorConfig.faults`."""
        if not is_testbed(source):
            yield f"judges answers to the testbed's prompts only, but data.source is {source}"

    def lay_out(self, subject: Subject) -> Iterable[Stage]:
        """See `Evaluator.lay_out`."""
        from macpo.testbed.stages import OracleScores, PairsOracle

        if subject.answers is not None:
            yield OracleScores(f"{subject.place}/oracle", subject.answers)
        if subject.pairs is not None:
            yield PairsOracle(f"{subject.place}/pairs-oracle", subject.pairs)


register_metrics()
DATA_SCHEMES.register(SCHEME, TestbedData())
MODEL_SCHEMES.register(SCHEME, resolve_base)
