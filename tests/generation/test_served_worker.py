"""macpo's own worker, over a package that passes for vLLM (`stub_vllm.py`)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macpo.generation.served.engine import WORKER
from macpo.generation.served.process import Worker, WorkerFailed
from tests.generation.stub_vllm import install
from tests.generation.test_served_engine import gone
from tests.runs import SOURCES

SAMPLING = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "max_tokens": 3}


def start(folder: Path, **changes: Any) -> dict[str, Any]:
    options = {"model": str(folder), "dtype": "float32", "length": 64, "rank": 16}
    options |= {"kv_bytes": 1 << 20, "parallel": 1, "trust_remote_code": False, **changes}
    return {"start": options}


def asking(*tokens: int, adapter: dict[str, Any] | None = None, **sampling: Any) -> dict[str, Any]:
    items = [
        {"index": i, "ids": [1, token], "seed": 10 + i, "told": i == 0}
        for i, token in enumerate(tokens)
    ]
    return {"answer": items, "sampling": SAMPLING | sampling, "stop": [7], "adapter": adapter}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    install(tmp_path)
    made = Worker([sys.executable, "-S", str(WORKER)], {"PYTHONPATH": str(tmp_path)})
    yield made
    made.end()


def received(worker: Worker) -> dict[str, Any]:
    return worker.receive(30, lambda: None)


def test_what_vllm_prints_is_kept_from_the_protocol(worker: Worker, tmp_path: Path) -> None:
    worker.send(start(tmp_path))
    assert received(worker) == {"ready": {"version": "0.99", "dtype": "float32", "device": "cuda"}}
    worker.send(asking(5, 6))

    messages = [received(worker) for _ in range(3)]

    assert sorted(messages[:2], key=lambda m: m["index"]) == [
        {"index": 0, "ids": [10, 0, 5], "reason": None, "logprobs": [-0.25] * 3},
        {"index": 1, "ids": [11, 0, 6], "reason": None, "logprobs": None},
    ]
    assert messages[2] == {"done": 2}
    assert "this goes to stdout" in worker.log.read_text()


def test_adapters_and_stop_reasons_come_through_and_sleepers_are_woken(
    worker: Worker, tmp_path: Path
) -> None:
    worker.send(start(tmp_path))
    received(worker)
    worker.send({"rest": True})
    assert received(worker) == {"done": 0}
    worker.send(asking(5, adapter={"name": "a", "id": 9, "path": "/a"}, max_tokens=4))

    assert received(worker) == {"index": 0, "ids": [10, 9, 5], "reason": 7, "logprobs": [-0.25] * 3}
    assert received(worker) == {"done": 1}


def test_an_error_of_vllms_is_told_in_one_line_and_ends_everything(
    worker: Worker, tmp_path: Path
) -> None:
    worker.send(start(tmp_path, rank=8))
    received(worker)
    worker.send(asking(5, adapter={"name": "a", "id": 9, "path": "/a"}))

    with pytest.raises(WorkerFailed, match=r"^failed: ValueError: the adapter does not fit$"):
        received(worker)
    assert gone([worker.pid, int((tmp_path / "pids").read_text())])


def test_a_model_that_does_not_load_is_told_in_one_line(worker: Worker) -> None:
    worker.send(start(Path("broken")))

    with pytest.raises(WorkerFailed, match=r"^failed: ValueError: no such model$"):
        received(worker)


PARENT = """
import os, sys, time
from macpo.generation.served.process import Worker
worker = Worker([sys.executable, "-S", sys.argv[1]], {"PYTHONPATH": sys.argv[2]})
worker.send({"start": eval(sys.argv[3])})
worker.receive(30, lambda: None)
if sys.argv[4] == "fork" and os.fork() == 0:
    os.close(1)
    time.sleep(20)  # holds our end of the worker's pipe open
    os._exit(0)
print(worker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_the_worker_and_what_it_started_die_with_a_parent_that_is_killed(
    tmp_path: Path, how: str
) -> None:
    install(tmp_path)
    arguments = [str(WORKER), str(tmp_path), repr(start(tmp_path)["start"]), how]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
        start_new_session=True,
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()), int((tmp_path / "pids").read_text())]

    parent.kill()
    parent.wait()
    parent.stdout.close()

    assert gone(pids)
    if how == "fork":
        os.killpg(parent.pid, signal.SIGKILL)


def test_a_worker_that_is_forgotten_is_ended(tmp_path: Path) -> None:
    install(tmp_path)
    worker = Worker([sys.executable, "-S", str(WORKER)], {"PYTHONPATH": str(tmp_path)})
    worker.send(start(tmp_path))
    received(worker)
    pids, log = [worker.pid, int((tmp_path / "pids").read_text())], worker.log

    started = time.monotonic()
    del worker

    assert gone(pids)
    assert time.monotonic() - started < 5
    log.unlink()
