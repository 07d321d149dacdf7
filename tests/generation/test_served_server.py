"""A server answers: what it is asked, and what is refused of it.

The server here listens on this machine's loopback and speaks as vLLM's does; behind it stands a
model of this process.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macpo.agents import Policy
from macpo.config import EngineConfig, TuningConfig
from macpo.config.serving import ServerConfig
from macpo.errors import ConfigError, ModelError
from macpo.generation.protocol import Speaker
from macpo.generation.served import server as serving
from macpo.generation.served.engine import Adapter, Drawing, Question
from macpo.generation.served.server import find_version, server_generator
from macpo.policies import snapshot
from tests.generation.test_generators import PARTS, PROMPTS
from tests.generation.test_served_generator import GREEDY, Mirror, Scene, local
from tests.workbench import make_agent


class Served(http.server.ThreadingHTTPServer):
    """A server over a mirror; `wrong` names what it does otherwise than vLLM's."""

    def __init__(self, engine: Mirror) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine = engine
        self.loaded: dict[str, str] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.wrong = ""
        self.one_at_a_time = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        adapter = None
        if body["model"] in self.loaded:
            adapter = Adapter(body["model"], 1, self.loaded[body["model"]])
        question = Question(tuple(body["prompt"]), body["seed"], told="logprobs" in body)
        drawing = Drawing(body["temperature"], body["top_p"], body["top_k"], body["max_tokens"])
        with self.one_at_a_time:
            [(_, drawn)] = self.engine.answer(
                {0: question}, drawing, body["stop_token_ids"], adapter, lambda: None
            )
        choice: dict[str, Any] = {"text": "…", "stop_reason": drawn.reason}
        if self.wrong != "text":
            choice["token_ids"] = list(drawn.ids)
        if drawn.logprobs is not None:
            choice["logprobs"] = {"token_logprobs": list(drawn.logprobs)}
        return {"choices": [choice]}


class Handler(http.server.BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        self.server.keys.add(self.headers.get("Authorization"))
        listed = [{"id": "base", "parent": None}]
        listed += [{"id": name, "parent": "base"} for name in self.server.loaded]
        version = {} if self.server.wrong == "version" else {"version": "0.33.0"}
        self.reply({"/version": version, "/v1/models": {"data": listed}}[self.path])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if self.server.wrong == "busy" and self.server.bodies.count(body) < 3:
            self.reply({"error": "try later"}, 503)
        elif self.path == "/v1/load_lora_adapter" and self.server.wrong == "fixed":
            self.reply({"detail": "Not Found"}, 404)
        elif self.path == "/v1/load_lora_adapter":
            self.server.loaded[body["lora_name"]] = body["lora_path"]
            self.reply("Success")
        else:
            self.reply(self.server.complete(body))

    def reply(self, what: Any, status: int = 200) -> None:
        raw = what.encode() if isinstance(what, str) else json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def served(scene: Scene) -> Iterator[Served]:
    server = Served(scene.engine)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def answers(scene: Scene, served: Served, policy: Policy, **changes: Any) -> Any:
    options = {"urls": {"student": served.url}, "adapters": str(scene.home / "shared"), **changes}
    speaker = Speaker(policy, "server 1+0.33.0", section=ServerConfig(**options))
    made = server_generator(speaker, scene.bench.pool, EngineConfig(), scene.counts.append)
    return made.respond(PROMPTS, GREEDY, PARTS)


def test_a_served_base_answers_with_adapters_that_it_is_given(scene: Scene, served: Served) -> None:
    for policy in (scene.positive, scene.negative, Policy(scene.positive.agent, "positive")):
        made = answers(scene, served, policy)
        own = local(scene, policy)
        assert [replace(r, origin=o.origin) for r, o in zip(made, own, strict=True)] == own
        assert {r.origin.backend for r in made} == {"server 1+0.33.0"}

    assert len(served.loaded) == 2
    answers(scene, served, scene.positive)
    loads = [body for body in served.bodies if "lora_path" in body]
    assert len(loads) == 2  # the third time it was there
    assert all(Path(body["lora_path"]).name == body["lora_name"] for body in loads)


def test_nothing_is_left_to_the_servers_defaults(scene: Scene, served: Served) -> None:
    answers(scene, served, scene.positive)

    asked = [body for body in served.bodies if "prompt" in body]
    assert len({body["seed"] for body in asked}) == len(PROMPTS)
    first = asked[0]
    assert first["ignore_eos"]
    assert first["return_token_ids"]
    assert first["stop_token_ids"] == sorted(scene.bench.pool.chat(scene.positive.agent).stop_ids)
    assert (first["repetition_penalty"], first["min_p"], first["top_k"]) == (1.0, 0.0, 50)
    assert all(isinstance(token, int) for token in first["prompt"])


def test_text_without_token_ids_is_refused(scene: Scene, served: Served) -> None:
    served.wrong = "text"

    with pytest.raises(ModelError) as raised:
        answers(scene, served, scene.positive)

    said = str(raised.value)
    assert said.startswith(f"student/positive: the server at {served.url} returns text without")
    assert "only vLLM's (return_token_ids) will do" in said


def test_a_server_that_takes_no_adapters_is_told_how_to(scene: Scene, served: Served) -> None:
    served.wrong = "fixed"

    with pytest.raises(ModelError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True") as raised:
        answers(scene, served, scene.positive)
    assert "answers 404" in str(raised.value)


def test_a_server_that_is_busy_is_asked_again(
    scene: Scene, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "PAUSES", (0.0, 0.0))
    served.wrong = "busy"

    made = answers(scene, served, Policy(scene.positive.agent, "positive"))

    assert len(made) == len(PROMPTS)


def test_what_a_server_cannot_answer_for_is_refused(scene: Scene, served: Served) -> None:
    with pytest.raises(ModelError, match=r"generation.adapters does not say in which folder"):
        answers(scene, served, scene.positive, adapters=None)

    whole = make_agent(tuning=TuningConfig(kind="full"))
    weights = snapshot(scene.bench.train_from(whole).trainable)
    policy = Policy(whole, "positive", scene.bench.write_weights("whole", weights))
    with pytest.raises(ModelError, match="trains whole, and a server cannot be given"):
        answers(scene, served, policy)


def test_the_key_is_read_from_the_environment_by_name(
    scene: Scene, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="the environment variable MY_KEY is not set"):
        answers(scene, served, scene.positive, api_key_env="MY_KEY")

    monkeypatch.setenv("MY_KEY", "secret")
    answers(scene, served, scene.positive, api_key_env="MY_KEY")
    assert served.keys == {"Bearer secret"}


def test_the_servers_version_is_found_before_work(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = ServerConfig(urls={"student": served.url})
    assert find_version(section) == "0.33.0"

    served.wrong = "version"
    with pytest.raises(ConfigError, match="is no vLLM server"):
        find_version(section)

    monkeypatch.setattr(serving, "PROBE_SECONDS", 0.5)
    nobody = ServerConfig(urls={"student": "http://127.0.0.1:9/v1"})
    with pytest.raises(ConfigError, match=r"generation.urls: http://127.0.0.1:9/v1 cannot be"):
        find_version(nobody)
