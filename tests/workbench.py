"""Agents over tiny model folders, and stages run by hand, one at a time, without a runner.

bench = Workbench(tmp_path)
student = make_agent(folder, tuning=TuningConfig(rank=2))
pairs = bench.write_pairs("pairs", make_pairs(4))  # a stage whose artifact is this file
weights = bench.run(TrainDPO("train", Policy(student, "positive"), pairs, ...))
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from macpo.agents import Agent, Policy
from macpo.config import (
    DPOConfig,
    EngineConfig,
    LimitsConfig,
    NegativeSFTConfig,
    SFTConfig,
    TuningConfig,
)
from macpo.generation.protocol import GeneratorFactory, make_generator
from macpo.models.sources import ResolvedModel
from macpo.policies import WEIGHTS_FILE, LoadedPolicy, PolicyPool
from macpo.progress import ProgressCallback
from macpo.records import (
    CompletionScore,
    Message,
    Origin,
    Pair,
    PreferenceExample,
    Prompt,
    Response,
    Split,
    write_answers,
    write_examples,
    write_jsonl,
    write_pairs,
    write_scores,
)
from macpo.stage import Stage, StageContext
from macpo.store import Artifact, Store
from tests.tiny import tiny_folder

CPU = torch.device("cpu")


@functools.cache
def model_folder(architecture: str = "llama", seed: int = 0, tied: bool = False) -> Path:
    """Return a tiny model folder that all tests share and none writes to."""
    # Kept alive by the cache of this function, removed when the interpreter ends.
    home = tempfile.TemporaryDirectory(prefix="macpo-tests-")
    _HOMES.append(home)
    return tiny_folder(Path(home.name), architecture, seed=seed, tie_word_embeddings=tied)


_HOMES: list[tempfile.TemporaryDirectory[str]] = []


def make_agent(folder: Path | None = None, *, name: str = "student", **changes: Any) -> Agent:
    """Return an agent over a model folder; `changes` replace fields, for example `tuning`."""
    folder = folder or model_folder()
    fields: dict[str, Any] = {
        "name": name,
        "base": ResolvedModel(folder.name, str(folder), None, f"digest of {folder}", local=True),
        "chat_template": None,
        "dtype": "float32",
        "tuning": TuningConfig(),
        "limits": LimitsConfig(),
        "sft": SFTConfig(),
        "negative_sft": NegativeSFTConfig(),
        "dpo": DPOConfig(),
    }
    return Agent(**{**fields, **changes})


@dataclass(frozen=True, eq=False)
class Written(Stage):
    """A stage whose artifact a test wrote; `label` makes its key."""

    kind: ClassVar[str] = "written"

    label: str

    def run(self, context: StageContext) -> Mapping[str, Any]:
        """Never called: `Workbench.write` makes the artifact."""
        raise NotImplementedError(self.label)


def ignore_progress(done: int, total: int, **fields: float) -> None:
    """Take a progress report and do nothing."""


class Workbench:
    """A store, a pool of policies, and the artifacts made so far."""

    def __init__(
        self,
        folder: Path,
        memory_bytes: int | None = None,
        generators: GeneratorFactory = make_generator,
    ) -> None:
        self.generators = generators
        self.store = Store(folder / "store")
        self.artifacts: dict[str, Artifact] = {}
        self.pool = PolicyPool(CPU, lambda key: self.artifacts[key].path, memory_bytes)

    def write(self, label: str, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> Written:
        """Commit JSONL files as the artifact of a stage."""

        def write(folder: Path) -> None:
            for name, rows in files.items():
                write_jsonl(folder / name, rows)

        return self.commit(label, write)

    def commit(self, label: str, write: Callable[[Path], None]) -> Written:
        """Commit what `write` writes as the artifact of a stage, if there is none.

        Returns:
            The stage.
        """
        stage = Written(label, label)
        found = self.store.find(stage.kind, stage.key)
        if found is None:
            work = self.store.workspace(stage.kind, stage.key)
            write(work.output)
            found = work.commit(inputs={}, meta={})
        self.artifacts[stage.key] = found
        return stage

    def write_examples(
        self, label: str, split: Split, examples: Sequence[PreferenceExample]
    ) -> Written:
        """Commit one split of a data set."""
        return self.commit(label, lambda folder: write_examples(folder, split, examples))

    def write_answers(self, label: str, answers: Sequence[tuple[Prompt, Response]]) -> Written:
        """Commit prompts and responses, as a stage that samples answers does."""
        return self.commit(label, lambda folder: write_answers(folder, answers))

    def write_pairs(self, label: str, pairs: Sequence[Pair]) -> Written:
        """Commit pairs."""
        return self.commit(label, lambda folder: write_pairs(folder, pairs))

    def write_scores(
        self, label: str, scored: Sequence[tuple[Response, CompletionScore]]
    ) -> Written:
        """Commit scores of answers."""
        return self.commit(label, lambda folder: write_scores(folder, scored))

    def write_weights(self, label: str, weights: Mapping[str, torch.Tensor]) -> Written:
        """Commit weights, as a training stage does."""
        from safetensors.torch import save_file

        stage = Written(label, label)
        work = self.store.workspace(stage.kind, stage.key)
        save_file(dict(weights), work.output / WEIGHTS_FILE)
        self.artifacts[stage.key] = work.commit(inputs={}, meta={})
        return stage

    def run(
        self,
        stage: Stage,
        *,
        engine: EngineConfig | None = None,
        progress: ProgressCallback = ignore_progress,
    ) -> Artifact:
        """Return a stage's artifact: found, or made, or resumed where a killed call left it."""
        found = self.store.find(stage.kind, stage.key)
        if found is not None:
            self.artifacts[stage.key] = found
            return found
        work = self.store.workspace(stage.kind, stage.key)
        context = StageContext(
            output=work.output,
            checkpoints=work.checkpoints,
            artifacts=self.artifacts,
            pool=lambda: self.pool,
            generators=self.generators,
            engine=engine or EngineConfig(),
            progress=progress,
            kept=self.store.kept,
        )
        artifact = work.commit(inputs={}, meta=stage.run(context))
        self.artifacts[stage.key] = artifact
        return artifact

    def train_from(self, agent: Agent, seed: int = 0) -> LoadedPolicy:
        """Load an agent's bare policy to train, with a fresh adapter under LoRA."""
        return self.pool.load_for_training(Policy(agent, "positive"), seed)


def make_prompt(text: str) -> Prompt:
    """Return a conversation of one user turn."""
    return Prompt((Message("user", text),))


def make_response(prompt: Prompt, text: str, policy: str = "teacher/positive") -> Response:
    """Return an answer that `policy` is said to have sampled."""
    return Response(prompt.id, text, Origin(policy))


def make_pairs(count: int) -> list[Pair]:
    """Return pairs with prompts and answers of various lengths."""
    pairs = []
    for i in range(count):
        prompt = make_prompt(f"Name a prime number greater than {i}." + " Please." * (i % 3))
        chosen = make_response(prompt, "Seven is a prime" + ", of course" * (i % 4) + ".")
        rejected = make_response(prompt, f"Eight{' is not' * (i % 3)} {i}", "student/negative")
        pairs.append(Pair(prompt, chosen, rejected))
    return pairs


def randomise(parameters: Mapping[str, torch.Tensor], seed: int, scale: float = 0.2) -> None:
    """Overwrite parameters with normal random numbers, so that an adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(parameters):
            draw = torch.randn(parameters[name].shape, generator=generator)
            parameters[name].copy_(scale * draw)
