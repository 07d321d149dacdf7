"""One stage: finding its artifact, or making it; the same code wherever a stage runs.

An executor decides when and where. What it means that a stage is done, and what a running stage is
given, stands here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.agents import Agent, Policy
from macpo.answering import Respond
from macpo.config import EngineConfig
from macpo.errors import DamagedError, StoreError
from macpo.generation.protocol import GeneratorFactory, make_generator
from macpo.memory import telling, translate_memory_errors, warn
from macpo.progress import ProgressCallback
from macpo.ranks import ALONE, Ranks
from macpo.stage import Stage, StageContext
from macpo.store import Artifact, Store, translate_write_errors

if TYPE_CHECKING:
    from macpo.policies import PolicyPool


@dataclass(frozen=True, slots=True)
class Bench:
    """What a process works with on whichever stage it runs.

    Attributes:
        pool: returns what loads policies; asked only by stages that need one, for it needs torch.
        engine: how work is laid out on this machine.
        generators: makes policies able to answer; by default by the backend of each stage.
        ranks: who runs stages together; a stage that is not `by_all_ranks` is rank 0's alone.
        note: hears, in one line, of less memory than the layout of work asks for.
    """

    pool: Callable[[], PolicyPool]
    engine: EngineConfig
    generators: GeneratorFactory = make_generator
    ranks: Ranks = ALONE
    note: Callable[[str], None] = warn


def look(
    store: Store, stage: Stage, artifacts: Mapping[str, Artifact]
) -> tuple[Artifact | None, str | None]:
    """Find a stage's artifact; if there is one of no use, say why that is so.

    Args:
        store: where it would be.
        stage: the stage.
        artifacts: those of its inputs, by stage key.

    Raises:
        StoreError: it cannot be read.
        MacpoError: the stage does not accept it.
    """
    try:
        artifact = store.find(stage.kind, stage.key)
    except DamagedError as error:
        return None, str(error)
    if artifact is not None and dict(artifact.inputs) != input_digests(stage, artifacts):
        return None, "it was made from inputs that have changed since"
    if artifact is not None:
        stage.accept(artifact.path)
    return artifact, None


def find_or_discard(
    store: Store, stage: Stage, artifacts: Mapping[str, Artifact]
) -> tuple[Artifact | None, str | None]:
    """Find the artifact of a claimed stage; one of no use is set aside, and it is said why."""
    artifact, reason = look(store, stage, artifacts)
    if reason is not None:
        store.discard(stage.kind, stage.key)
    return artifact, reason


def run_stage(
    store: Store,
    stage: Stage,
    artifacts: Mapping[str, Artifact],
    bench: Bench,
    progress: ProgressCallback,
) -> Artifact:
    """Run a stage in this process and commit its artifact.

    Of several ranks this is what rank 0 calls, while the others call `help_stage`.

    Args:
        store: where the artifact goes; the caller has claimed the stage in it.
        stage: the stage.
        artifacts: those of its inputs, by stage key.
        bench: the models and the layout of work.
        progress: told how far the stage is; what it raises stops the stage.

    Raises:
        MacpoError: the stage failed, in one line; its checkpoints stay. Also where what it reads
            was changed meanwhile.
    """
    check_inputs(store, stage, artifacts)
    workspace = store.workspace(stage.kind, stage.key)
    context = stage_context(store, stage, workspace.output, artifacts, bench, progress)
    with (
        translate_write_errors(workspace.output),
        translate_memory_errors(stage.name),
        telling(bench.note),
    ):
        meta = stage.run(context)
    for rank, texts in enumerate(context.ranks.gather([])):  # who has not come may fail still
        for text in texts:
            bench.note(f"rank {rank}: {text}")
    check_inputs(store, stage, artifacts)
    return workspace.commit(input_digests(stage, artifacts), meta)


def help_stage(
    store: Store,
    stage: Stage,
    artifacts: Mapping[str, Artifact],
    bench: Bench,
    progress: ProgressCallback,
) -> None:
    """Run a stage as one of the ranks that stand by rank 0; arguments as in `run_stage`.

    Raises:
        MacpoError: the stage failed, in one line.
    """
    said: list[str] = []  # to people by rank 0, at the end
    with tempfile.TemporaryDirectory(prefix="macpo-rank-") as unused:
        context = stage_context(store, stage, Path(unused), artifacts, bench, progress)
        with translate_memory_errors(stage.name), telling(said.append):
            stage.run(context)
        context.ranks.gather(said)


def stage_context(
    store: Store,
    stage: Stage,
    output: Path,
    artifacts: Mapping[str, Artifact],
    bench: Bench,
    progress: ProgressCallback,
) -> StageContext:
    """Return what a stage is given that writes into `output`; arguments as in `run_stage`."""
    ranks = bench.ranks if stage.by_all_ranks else ALONE
    return StageContext(
        output=output,
        checkpoints=store.checkpoints(stage.kind, stage.key, ranks),
        artifacts=artifacts,
        pool=bench.pool,
        generators=bench.generators,
        engine=bench.engine,
        progress=progress,
        kept=store.kept,
        ranks=ranks,
    )


def input_digests(stage: Stage, artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """Return the digests of what a stage reads, by where its inputs stand in its fields."""
    return {name: artifacts[i.key].digest for name, i in stage.inputs.items()}


def check_inputs(store: Store, stage: Stage, artifacts: Mapping[str, Artifact]) -> None:
    """Make sure that what a stage reads, or has read, is what was found or made.

    Raises:
        StoreError: somebody has changed it meanwhile; says what to do.
    """
    for made in stage.inputs.values():
        known = artifacts[made.key]
        try:
            found = store.find(known.kind, known.key)
        except DamagedError as error:
            fault = error.fault
        else:
            if found is not None and found.digest == known.digest:
                continue
            fault = f"{known.path} is gone" if found is None else f"{known.path} is another one"
        raise StoreError(
            f"{stage.name}: {made.name}, which it reads, was changed while the run went on "
            f"({fault}); run again to make it anew"
        )


def who_works(stages: Sequence[Stage]) -> list[tuple[Agent, Respond | None]]:
    """Return the agents of stages, in order, each with a stage in which it decodes here."""
    agents = {stage.agent.name: stage.agent for stage in stages if stage.agent}
    answers = {
        s.agent.name: s for s in stages if isinstance(s, Respond) and s.agent and s.decodes_here
    }
    return [(agent, answers.get(name)) for name, agent in agents.items()]


def examine(agent: Agent, answering: Respond | None, policies: PolicyPool) -> None:
    """Load an agent's base and keep no hold of it: a model that will not do is refused here.

    Args:
        agent: the agent.
        answering: a stage in which it is to answer, if there is one: it is tried with a few tokens,
            unless macpo's own decoder serves the model.
        policies: what to load it with.

    Raises:
        ModelError: it cannot be loaded, or cannot answer.
    """
    from macpo.generation.local import refuse_mute  # needs torch, which not every stage does

    with translate_memory_errors(f"loading {agent.name}"):
        loaded = policies.load(Policy(agent, "positive"))
        if answering is not None:
            written = answering.sampling.max_new_tokens
            refuse_mute(agent.name, loaded, agent.limits.prompt_tokens + written)
