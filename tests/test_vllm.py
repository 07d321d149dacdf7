"""vLLM serves what a run hands out, and answers as the run's own decoder does.

vLLM wants a virtual environment of its own: `make test-vllm` makes it and names its Python in
MACPO_VLLM_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from macpo.config import SamplingConfig, load_config
from macpo.generation.decode import decode
from macpo.runner import run
from tests.runs import write_config
from tests.test_publish import load_peft
from tests.test_resume import Quiet
from tests.tiny import tiny_folder

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

ANSWER = Path(__file__).with_name("vllm_answer.py")
HEADS = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}  # smallest that vLLM takes
PROMPTS = [[5, 6, 7, 8, 9], [40, 30, 20], list(range(60, 100))]
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's folder of a finished run."""
    folder = tmp_path_factory.mktemp("served")
    tiny_folder(folder / "models" / "student", "llama", **HEADS)
    run(load_config(write_config(folder), ["rounds=1"]), folder / "run", Quiet())
    return folder / "run" / "final" / "student"


def test_vllm_answers_with_the_adapter_as_we_do(student: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    request = {"adapter": str(student), "prompts": PROMPTS, "new_tokens": NEW_TOKENS}
    answered = subprocess.run(
        [os.environ["MACPO_VLLM_PYTHON"], str(ANSWER), str(answers)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "", "VLLM_CPU_KVCACHE_SPACE": "1"},
        check=False,
    )
    assert answered.returncode == 0, answered.stderr[-3000:]
    theirs = json.loads(answers.read_text())

    model = load_peft(student)
    assert theirs["adapter"] == greedy(model)
    with torch.no_grad(), model.disable_adapter():
        assert theirs["base"] == greedy(model)
    assert theirs["adapter"] != theirs["base"]


def greedy(model: torch.nn.Module) -> list[list[int]]:
    """Answer the prompts with our decoder, without a stop."""
    completions = decode(
        model,
        PROMPTS,
        stop_ids=frozenset(),
        sampling=SamplingConfig(temperature=0, max_new_tokens=NEW_TOKENS),
        seeds=[0] * len(PROMPTS),
        memory_gib=1.0,
        pack_tokens=256,
    )
    return [list(completion.token_ids) for completion in completions]
