"""The keys of backends that answer in another process, and finding their engines before work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from macpo.answering import Respond
from macpo.backends import LOCAL, SERVER, VLLM
from macpo.config import RunConfig, load_config
from macpo.config.dumping import dump_config, dump_resolved
from macpo.config.serving import ServerConfig, VllmConfig
from macpo.errors import ConfigError
from macpo.generation.served import vllm as served
from macpo.planning import plan
from tests.generation.test_backends import laid_out
from tests.runs import run_cli, write_config
from tests.training.test_stage_keys import keys


@pytest.fixture
def forget() -> Iterator[None]:
    """Interpreters are asked once in a process; here each time anew."""
    served._version_in.cache_clear()
    yield
    served._version_in.cache_clear()


def interpreter(folder: Path, said: str, status: int = 0) -> Path:
    """Return a program that answers as an interpreter does that is asked for its vLLM."""
    path = folder / "bin" / "python"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{said}' {'' if status == 0 else '>&2'}\nexit {status}\n")
    path.chmod(0o755)
    return path


def configured(folder: Path, **generation: Any) -> RunConfig:
    return load_config(write_config(folder, generation=generation))


def faults(folder: Path, **generation: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        configured(folder, **generation)
    return str(raised.value)


def test_a_backends_keys_are_read_and_written_back(tmp_path: Path) -> None:
    interpreter(tmp_path, "")
    config = configured(tmp_path, backend="vllm", python="bin/python", deadline_s=60)

    section = config.generation
    assert isinstance(section, VllmConfig)
    assert section.python == str(tmp_path.resolve() / "bin" / "python")  # beside the config
    assert section.tensor_parallel == 1
    for text in (dump_config(config), dump_resolved(config, "float32")):
        (tmp_path / "again.yaml").write_text(text)
        assert load_config(tmp_path / "again.yaml").generation == section
    assert yaml.safe_load(dump_config(config))["generation"] == {
        "backend": "vllm",
        "python": section.python,
        "deadline_s": 60,
    }


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        (
            {"backend": "vllm"},
            "generation.python: missing; it has no default; name the interpreter of an environment "
            "with vLLM, such as .venv-vllm/bin/python (docs/vllm.md says how to make one)",
        ),
        (
            {"backend": "server"},
            "generation.urls: missing; it has no default; say by agent where its base is served, "
            "such as student: http://host:8000/v1",
        ),
        (
            {"backend": "vllm", "python": "p", "deadlines_s": 3},
            "generation.deadlines_s: unknown key; did you mean 'deadline_s'?",
        ),
        (
            {"backend": "local", "python": "p"},
            "generation.python: unknown key; it belongs to generation.backend: vllm",
        ),
        (
            {"backend": "vllm", "python": "p", "urls": {}},
            "generation.urls: unknown key; it belongs to generation.backend: server",
        ),
        (
            {"backend": "server", "urls": {"student": "host:8000"}},
            "generation.urls: student: 'host:8000' is no address; write http://host:8000/v1",
        ),
        (
            {"backend": "server", "urls": {"student": "http://a:b@host/v1"}},
            "generation.urls: student: holds a user or a password",
        ),
        (
            {"backend": "server", "urls": {"pupil": "http://host/v1"}},
            "generation.urls: there is no agent 'pupil'; this run's are student, weak-a, weak-b",
        ),
        ({"backend": "server", "urls": {}}, "generation.urls: is empty; name an agent"),
        (
            {"backend": "vllm", "python": "p", "tensor_parallel": 0},
            "generation.tensor_parallel: must be greater than 0",
        ),
    ],
)
def test_faults_of_a_section_are_told_in_one_line(
    tmp_path: Path, section: dict[str, Any], fault: str
) -> None:
    assert fault in faults(tmp_path, **section)


@pytest.mark.usefixtures("forget")
def test_the_engines_version_stands_in_keys_and_its_layout_does_not(tmp_path: Path) -> None:
    def respond(said: str, **options: Any) -> Respond:
        served._version_in.cache_clear()
        python = interpreter(tmp_path, said)
        config = configured(tmp_path, backend="vllm", python=str(python), **options)
        return next(stage for stage in laid_out(config) if isinstance(stage, Respond))

    first = respond('["0.33.1", "3.12"]')

    assert first.backend == "vllm 1+0.33.1"
    assert first.agent is first.policy.agent
    assert respond('["0.33.1", "3.12"]', deadline_s=5, tensor_parallel=2).key == first.key
    assert respond('["0.33.2", "3.12"]').key != first.key
    assert replace(first, backend=LOCAL.label).key != first.key


def test_keys_of_other_backends_are_what_they_were() -> None:
    """The section travels with the stage, and is no part of its key."""
    assert keys(generation={"backend": "local"}) == keys()
    answers = "init/a/positive-answers"
    assert keys(generation={"backend": "scripted"})[answers] != keys()[answers]
    assert "generation" not in Respond.not_in_key - {"generation"}


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize(
    ("said", "status", "fault"),
    [
        ('[null, "3.12"]', 0, "(Python 3.12) has no vLLM; install it there"),
        ('["0.9.1", "3.12"]', 0, "has vLLM 0.9.1, and 0.32 is the oldest that was tried"),
        ("Segmentation fault", 3, "does not work as a Python interpreter (Segmentation fault)"),
        ("hello", 0, "does not work as a Python interpreter"),
    ],
)
def test_an_interpreter_that_will_not_do_is_found_by_plan_and_before_work(
    tmp_path: Path, said: str, status: int, fault: str
) -> None:
    python = interpreter(tmp_path, said, status)
    path = write_config(tmp_path, generation={"backend": "vllm", "python": str(python)})

    with pytest.raises(ConfigError) as raised:
        plan(load_config(path))
    result = run_cli(["run", path, "--out", tmp_path / "run"])

    assert fault in str(raised.value)
    assert str(raised.value).startswith("generation.python: ")
    assert result.code != 0
    assert fault in " ".join(result.err.split())
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.usefixtures("forget")
def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = configured(tmp_path, backend="vllm", python="/nowhere/python")

    with pytest.raises(ConfigError, match="/nowhere/python is no program that can be run"):
        plan(config)


@pytest.mark.usefixtures("forget")
def test_pushing_away_is_refused_with_what_can(tmp_path: Path) -> None:
    python = interpreter(tmp_path, '["0.33.1", "3.12"]')
    config = write_config(
        tmp_path,
        generation={"backend": "vllm", "python": str(python)},
        method={"negatives": "decoding"},
    )

    with pytest.raises(ConfigError, match="vllm cannot push answers away from another policy"):
        plan(load_config(config))


def test_agents_whom_no_server_serves_answer_here(tmp_path: Path) -> None:
    config = configured(tmp_path, backend="server", urls={"student": "http://127.0.0.1:9/v1"})

    section = config.generation
    assert isinstance(section, ServerConfig)
    assert section.backend_of("student") is SERVER
    assert section.backend_of("weak-a") is LOCAL
    assert VllmConfig(python="p").backend_of("student") is VLLM
