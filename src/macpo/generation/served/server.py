"""The server backend: a vLLM server that is there answers, over its OpenAI-compatible API.

Only a server that takes and returns token ids will do. The method scores answers as they were
sampled, and text that is encoded again has other ids: an answer that comes as text alone is
refused. Adapters are loaded at run time (`VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`).
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from macpo.config import EngineConfig
from macpo.config.serving import ServerConfig
from macpo.errors import ConfigError, ModelError
from macpo.generation.protocol import Speaker
from macpo.generation.served.adapters import hand_over_adapter
from macpo.generation.served.engine import Adapter, Drawing, Drawn, Question
from macpo.generation.served.generator import ServedGenerator

if TYPE_CHECKING:
    from macpo.policies import PolicyPool

AT_ONCE = 64
"""Requests under way at the same time; a server puts them into batches."""
PAUSES = (2.0, 8.0)
"""Seconds between attempts at a request that a server is too busy for, or that is lost."""
PROBE_SECONDS = 10.0
TICK_SECONDS = 0.5
SAID_LETTERS = 200


class Refused(Exception):
    """A server did not do what was asked; the message continues a sentence about it."""


def find_version(section: ServerConfig) -> str:
    """Return the version of the vLLM behind the addresses of a config.

    Raises:
        ConfigError: a server cannot be reached, is none of vLLM, or they differ.
    """
    key = _key(section.api_key_env)
    found = {url: _version_at(url, key) for url in dict.fromkeys(section.urls.values())}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{url} has {version}" for url, version in found.items())
        raise ConfigError(f"generation.urls: servers of several versions ({told}); make them equal")
    return next(iter(found.values()))


def _version_at(url: str, key: str | None) -> str:
    """Ask a server for its version."""
    parts = urlsplit(url)
    try:
        answer = _call(f"{parts.scheme}://{parts.netloc}/version", None, key, PROBE_SECONDS, ())
    except Refused as refused:
        raise ConfigError(
            f"generation.urls: {url} {refused}; start a vLLM server there (docs/vllm.md), or take "
            "generation.backend: vllm or local"
        ) from None
    version = answer.get("version")
    if not isinstance(version, str):
        raise ConfigError(
            f"generation.urls: {url} is no vLLM server; take generation.backend: local"
        )
    return version


def server_generator(
    speaker: Speaker,
    policies: PolicyPool,
    engine: EngineConfig,
    progress: Callable[[int], None],
) -> ServedGenerator:
    """Let a server answer for a policy: a `macpo.generation.protocol.GeneratorFactory`.

    The policy is loaded here as well: its adapter is written for the server, and the canary needs
    it.

    Raises:
        ModelError: the policy trains whole, or has an adapter that the server cannot be given.
    """
    section, policy = speaker.section, speaker.policy
    assert isinstance(section, ServerConfig)  # the backend's own, as the config was read
    agent = policy.agent
    loaded = policies.load(policy)
    adapter = None
    if policy.weights is not None:
        if agent.tuning.kind != "lora":
            raise ModelError(
                f"{policy.name} trains whole, and a server cannot be given other weights; set "
                "tuning.kind: lora, or generation.backend: vllm or local"
            )
        if section.adapters is None:
            raise ModelError(
                f"{policy.name} answers with an adapter, and generation.adapters does not say in "
                "which folder the server finds it; name one that both see under the same path"
            )
        adapter = hand_over_adapter(loaded, policy, Path(section.adapters).absolute())
    served = ServerEngine(
        section.urls[agent.name], _key(section.api_key_env), section.deadline_s, policy.name
    )
    return ServedGenerator(
        speaker, loaded, lambda length: (served, adapter), engine.pack_tokens, progress
    )


class ServerEngine:
    """A served base with adapters over it: a `macpo.generation.served.engine.Engine`.

    Args:
        url: of the API, such as `http://host:8000/v1`.
        key: for it, if it asks for one.
        deadline: seconds that a request may take.
        owner: for messages: who answers.
    """

    def __init__(self, url: str, key: str | None, deadline: float, owner: str) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._deadline = deadline
        self._owner = owner

    def answer(
        self,
        questions: Mapping[int, Question],
        drawing: Drawing,
        stops: Sequence[int],
        adapter: Adapter | None,
        waiting: Callable[[], None],
    ) -> Iterator[tuple[int, Drawn]]:
        """See `macpo.generation.served.engine.Engine.answer`."""
        threads = ThreadPoolExecutor(AT_ONCE, "served")
        try:
            model = self._model(adapter)
            asked: dict[Future[Drawn], int] = {
                threads.submit(self._ask, _request(model, question, drawing, stops)): number
                for number, question in questions.items()
            }
            while asked:
                done, _ = wait(asked, TICK_SECONDS, FIRST_COMPLETED)
                if not done:
                    waiting()
                for future in done:
                    yield asked.pop(future), future.result()
        except Refused as refused:
            raise ModelError(
                f"{self._owner}: the server at {self._url} {refused}; answers of finished shards "
                "are kept: mend it and run again, or set generation.backend: local"
            ) from refused
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def rest(self) -> None:
        """Do nothing: the server is somebody else's."""

    def close(self) -> None:
        """Do nothing, likewise."""

    def _model(self, adapter: Adapter | None) -> str:
        """Return the name under which the server has the policy, and give it the adapter.

        Raises:
            Refused: it serves no base, or does not load the adapter.
        """
        listed = [m for m in self._get("models").get("data", []) if isinstance(m, dict)]
        names = [str(m.get("id")) for m in listed]
        if adapter is None:
            bases = [str(m.get("id")) for m in listed if not m.get("parent")]
            if not bases:
                raise Refused("lists no base model")
            return bases[0]
        if adapter.name not in names:
            try:
                self._post(
                    "load_lora_adapter", {"lora_name": adapter.name, "lora_path": adapter.path}
                )
            except Refused as refused:
                raise Refused(
                    f"did not load the adapter {adapter.path} ({refused}); start it with "
                    "--enable-lora, --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
                ) from refused
        return adapter.name

    def _ask(self, request: Mapping[str, Any]) -> Drawn:
        """Ask for one answer."""
        choices = self._post("completions", request).get("choices") or [{}]
        return read_choice(choices[0], told="logprobs" in request)

    def _get(self, path: str) -> dict[str, Any]:
        return _call(f"{self._url}/{path}", None, self._key, PROBE_SECONDS)

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return _call(f"{self._url}/{path}", body, self._key, self._deadline)


def _request(
    model: str, question: Question, drawing: Drawing, stops: Sequence[int]
) -> dict[str, Any]:
    """Return the body that asks for an answer; it leaves nothing to the server's defaults."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(question.ids),
        "temperature": drawing.temperature,
        "top_p": drawing.top_p,
        "top_k": drawing.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "max_tokens": drawing.max_tokens,
        "seed": question.seed,
        "stop_token_ids": list(stops),
        "ignore_eos": True,  # the tokens above are all that ends an answer
        "add_special_tokens": False,
        "return_token_ids": True,
    }
    return {**body, "logprobs": 0} if question.told else body


def read_choice(choice: Mapping[str, Any], *, told: bool) -> Drawn:
    """Read an answer.

    Args:
        choice: of `choices`, as the server returned it.
        told: log-probabilities were asked for.

    Raises:
        Refused: it comes as text alone.
    """
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise Refused(
            "returns text without token ids, which other ids would be made of than were sampled; "
            "only vLLM's (return_token_ids) will do"
        )
    reason = choice.get("stop_reason")
    logprobs = None
    if told:
        values = (choice.get("logprobs") or {}).get("token_logprobs")
        logprobs = tuple(map(float, values)) if isinstance(values, list) else None
    return Drawn(tuple(ids), reason if isinstance(reason, int) else None, logprobs)


def _call(
    url: str,
    body: Mapping[str, Any] | None,
    key: str | None,
    timeout: float,
    pauses: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Send a request; return the JSON object that comes back, empty for other answers.

    Raises:
        Refused: it says no, or does not answer after several attempts.
    """
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    said = ""
    for pause in (*(PAUSES if pauses is None else pauses), None):
        request = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return _read_object(response.read())
        except urllib.error.HTTPError as error:
            said = f"answers {error.code} {_shown(error.read())}".rstrip()
            if error.code < 500:
                raise Refused(said) from None
        except (OSError, ValueError) as error:
            said = f"cannot be reached ({_shown(str(error).encode())})"
        if pause is not None:
            time.sleep(pause)
    raise Refused(said)


def _read_object(raw: bytes) -> dict[str, Any]:
    """Read a JSON object; what is none counts as an empty one, as a plain `OK` does."""
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _shown(raw: bytes) -> str:
    """Show what a server said in one short line."""
    text = " ".join(raw.decode("utf-8", "replace").split())
    return "".join(c if c.isprintable() else " " for c in text)[:SAID_LETTERS]


def _key(name: str | None) -> str | None:
    """Return the key in an environment variable.

    Raises:
        ConfigError: it is not set.
    """
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"generation.api_key_env: the environment variable {name} is not set; set it, or "
            "remove api_key_env for a server that asks for no key"
        )
    return key
