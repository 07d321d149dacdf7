"""A judge on loopback that keeps to a rule, and fails in the ways in which real ones do.

with JudgeServer(prefer_longer) as server:
    server.faults = [Fault(status=429, headers={"Retry-After": "0"}), Fault(hang=True)]
    ...                                     # the first two requests fail, the next ones do not
    server.requests                         # every request's body, as it came
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Rule = Callable[[str, str], str]
"""From answers A and B, as they stand in the request, to what the judge writes."""


@dataclass(frozen=True)
class Fault:
    """How one request fails: a status, a body instead of a completion, silence, or a text."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    message: str = "no luck"
    body: bytes | None = None
    hang: bool = False
    text: str | None = None


def reply_of(verdict: str) -> str:
    return json.dumps({"reason": "so it seems", "verdict": verdict})


def prefer_longer(a: str, b: str) -> str:
    return reply_of("tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B")


def prefer_first(a: str, b: str) -> str:
    return reply_of("A")


def shown_answers(content: str) -> tuple[str, str]:
    """Return what stands between the markers of answers A and B."""
    found = []
    for name in ("answer A", "answer B"):
        match = re.search(
            rf"\[\[\[{name} ([0-9a-f]{{16}})\]\]\]\n(.*?)\n\[\[\[end of {name} \1\]\]\]",
            content,
            re.DOTALL,
        )
        assert match is not None, content
        found.append(match[2])
    return found[0], found[1]


class JudgeServer:
    """See the module."""

    def __init__(self, rule: Rule, key: str | None = None, model: str = "judge-1") -> None:
        self.rule = rule
        self.key = key
        self.model = model
        self.faults: list[Fault] = []
        self.requests: list[dict[str, Any]] = []
        self.released = threading.Event()
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"judge": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer

    def do_POST(self) -> None:
        judge = self.judge
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with judge.lock:
            judge.requests.append(body)
            fault = judge.faults.pop(0) if judge.faults else None
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
            self._answer(judge, body, fault)

    def _answer(self, judge: JudgeServer, body: dict[str, Any], fault: Fault | None) -> None:
        if judge.key is not None and self.headers["Authorization"] != f"Bearer {judge.key}":
            said = f"Incorrect API key provided: {self.headers['Authorization']}"
            self._send(401, {"error": {"message": said, "code": "invalid_api_key"}})
            return
        if body["model"] != judge.model:
            said = f"The model `{body['model']}` does not exist"
            self._send(404, {"error": {"message": said, "code": "model_not_found"}})
            return
        if fault is not None and fault.hang:
            judge.released.wait(30)
            return
        if fault is not None and (fault.status != 200 or fault.body is not None):
            error = {"error": {"message": fault.message, "code": fault.code}}
            self._send(fault.status, error if fault.body is None else fault.body, fault.headers)
            return
        if fault is not None and fault.text is not None:
            text = fault.text
        else:
            text = judge.rule(*shown_answers(body["messages"][-1]["content"]))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        self._send(
            200,
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": judge.model,
                "choices": [choice],
                "usage": usage,
            },
        )

    def _send(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
