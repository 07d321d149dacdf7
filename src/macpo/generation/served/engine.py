"""What answers in another process: one model, adapters over it, token ids in and out."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from macpo.errors import ModelError
from macpo.generation.served.process import Worker, WorkerFailed, WorkerToldError

log = logging.getLogger("macpo")

WORKER = Path(__file__).with_name("worker.py")
RESTARTS = 1
"""How often a worker that failed is started again within one stage."""
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
"""What would lead another interpreter to this one's packages."""
THEIRS = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""A run reports to nobody, and the model is a folder of this machine."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to be answered: its token ids and its seed. `told` asks for log-probabilities."""

    ids: tuple[int, ...]
    seed: int
    told: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """What an engine drew for a prompt.

    Attributes:
        ids: tokens; a token that ended the answer may be last, or missing.
        reason: the token that ended it; None if it was cut at the limit.
        logprobs: of each token, in nats, before temperature and filters; None if not asked for.
    """

    ids: tuple[int, ...]
    reason: int | None
    logprobs: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter as an engine is told of it; name and number come of its content.

    Attributes:
        name: its digest, shortened.
        id: its digest, shortened to a positive number.
        path: its folder in PEFT's form, whose name is the digest too.
    """

    name: str
    id: int
    path: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """How all prompts of a request are answered; `top_k` 0 turns it off."""

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int


class Engine(Protocol):
    """Answers prompts with one base model, and adapters over it."""

    def answer(
        self,
        questions: Mapping[int, Question],
        drawing: Drawing,
        stops: Sequence[int],
        adapter: Adapter | None,
        waiting: Callable[[], None],
    ) -> Iterator[tuple[int, Drawn]]:
        """Yield the answers as they come, each with its question's number.

        Args:
            questions: by number.
            drawing: how tokens are drawn.
            stops: tokens that end an answer.
            adapter: over the base; None for the bare base.
            waiting: called every now and then while there is nothing; what it raises ends all.

        Raises:
            ModelError: it cannot answer; one line with the reason.
        """
        ...

    def rest(self) -> None:
        """Give back what memory can be given back until the next prompts."""

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a worker loads; the fields are the keys of its `start` message."""

    model: str
    dtype: str
    length: int
    rank: int
    kv_bytes: int
    parallel: int
    trust_remote_code: bool


class SupervisedEngine:
    """vLLM in a process of its own; one that fails is started again, once in a stage.

    Args:
        launch: what it loads.
        folder: for files of adapters, which are there as long as the engine: vLLM reads them late;
            the engine removes it.
        python: the interpreter that has vLLM.
        deadline: seconds after which a worker that is silent counts as hung.
        owner: for messages: whose base it is.
        worker: the program; tests give another one that speaks the same.
    """

    def __init__(
        self,
        launch: Launch,
        folder: Path,
        python: str,
        deadline: float,
        owner: str,
        worker: Path = WORKER,
    ) -> None:
        self.folder = folder
        self._launch = launch
        self._python = python
        self._deadline = deadline
        self._owner = owner
        self._program = worker
        self._worker: Worker | None = None
        self._restarts = RESTARTS
        self._known: dict[int, str] = {}

    @property
    def pid(self) -> int | None:
        """The worker's process, if it runs."""
        return None if self._worker is None else self._worker.pid

    def begin_stage(self) -> None:
        """Allow a worker that fails to be started again."""
        self._restarts = RESTARTS

    def answer(
        self,
        questions: Mapping[int, Question],
        drawing: Drawing,
        stops: Sequence[int],
        adapter: Adapter | None,
        waiting: Callable[[], None],
    ) -> Iterator[tuple[int, Drawn]]:
        """See `Engine.answer`. What was answered before a worker failed is not asked again."""
        left = dict(questions)
        while left:
            try:
                worker = self._ready(adapter, waiting)
                worker.send(_asking(left, drawing, stops, adapter))
                while "done" not in (message := worker.receive(self._deadline, waiting)):
                    if "index" in message and left.pop(message["index"], None) is not None:
                        yield message["index"], _drawn(message)
                if left:
                    raise WorkerFailed(f"left {len(left)} of {len(questions)} prompts unanswered")
            except WorkerFailed as failure:
                self._fail(failure, len(left))
            except BaseException:  # who asked has gone: what is still to come is nobody's
                self._end_worker()
                raise

    def rest(self) -> None:
        """Let the engine give back its memory, as far as vLLM can on this device."""
        if self._worker is None:
            return
        try:
            self._worker.send({"rest": True})
            self._worker.receive(self._deadline, lambda: None)
        except WorkerFailed:
            self._end_worker()
        except BaseException:
            self._end_worker()
            raise

    def close(self) -> None:
        """End the worker and remove the adapters' files."""
        self._end_worker()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ready(self, adapter: Adapter | None, waiting: Callable[[], None]) -> Worker:
        """Return a worker that has loaded its model, and knows no other adapter by that number."""
        if adapter is not None and self._known.get(adapter.id, adapter.name) != adapter.name:
            self._end_worker()  # a fresh one knows none
        if self._worker is None:
            log.info("%s: starting vLLM on %s", self._owner, self._launch.model)
            self._known.clear()
            self._worker = Worker([self._python, str(self._program)], plain_environment())
            self._worker.send({"start": asdict(self._launch)})
            try:
                self._check(self._worker.receive(self._deadline, waiting))
            except WorkerToldError as error:  # it would say the same again
                raise ModelError(
                    f"{self._owner}: vLLM does not start, its worker {error}; if that is about "
                    "memory change engine.decode_memory_gib, else set generation.backend: local; "
                    f"its output: {self._keep_log()}"
                ) from error
        if adapter is not None:
            self._known[adapter.id] = adapter.name
        return self._worker

    def _check(self, message: Mapping[str, Any]) -> None:
        """Take what a worker says of itself.

        Raises:
            WorkerFailed: it said something else.
            ModelError: it works in another dtype than it was told to.
        """
        if "ready" not in message:
            raise WorkerFailed(f"began with {sorted(message)}")
        dtype = message["ready"]["dtype"]
        if dtype != self._launch.dtype:
            raise ModelError(
                f"{self._owner}: vLLM loaded the model in {dtype}, but the run is in "
                f"{self._launch.dtype}; set dtype: {dtype}, or generation.backend: local"
            )

    def _fail(self, failure: WorkerFailed, left: int) -> None:
        """End a worker that failed, so that it is started again.

        Raises:
            ModelError: it was started again before in this stage.
        """
        output = "" if self._worker is None else f"; its output: {self._keep_log()}"
        if not self._restarts:
            raise ModelError(
                f"{self._owner}: vLLM's worker {failure}, and it had been started again once; if "
                "memory is short lower engine.decode_memory_gib, else set generation.backend: "
                f"local{output}"
            )
        self._restarts -= 1
        log.warning(
            "%s: vLLM's worker %s; it is started again for the %d prompts that are left%s",
            self._owner,
            failure,
            left,
            output,
        )

    def _end_worker(self) -> None:
        """End the worker, if there is one."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _keep_log(self) -> Path | None:
        """End the worker, and return where what it wrote can be read."""
        worker, self._worker = self._worker, None
        if worker is None:
            return None
        worker.end(keep_log=True)
        return worker.log


def _asking(
    left: Mapping[int, Question], drawing: Drawing, stops: Sequence[int], adapter: Adapter | None
) -> dict[str, Any]:
    """Return the message that asks for answers."""
    return {
        "answer": [
            {"index": number, "ids": list(q.ids), "seed": q.seed, "told": q.told}
            for number, q in left.items()
        ],
        "sampling": asdict(drawing),
        "stop": list(stops),
        "adapter": None if adapter is None else asdict(adapter),
    }


def _drawn(message: Mapping[str, Any]) -> Drawn:
    """Read an answer."""
    told = message["logprobs"]
    logprobs = None if told is None else tuple(told)
    return Drawn(tuple(message["ids"]), message["reason"], logprobs)


def plain_environment() -> dict[str, str]:
    """Return this process's environment as another interpreter is to have it."""
    return {k: v for k, v in os.environ.items() if k not in OURS} | THEIRS
