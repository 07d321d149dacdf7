"""The server behind the page: it hands out pairs and takes judgments, and nothing else.

    GET  /                        the page
    GET  /api/start               how many pairs there are, and who has judged how many
    GET  /api/next?annotator=A    the next pair, the two answers on sides drawn for A
    POST /api/judge               {annotator, pair, choice, seconds}; choice: left, right, tie
    POST /api/undo                {annotator}: take back the latest judgment and show its pair

Nothing that it sends says whose answer is which. It has no password: whoever reaches it can judge.
Other pages that are open in a browser cannot: a request has to name a host that is ours (or else a
page's own name could be pointed at us), and what changes anything has to be JSON of our own page's.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import re
import socket
from collections.abc import Callable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from macpo.annotation.judgments import JudgmentFile, annotator_name, left_side
from macpo.annotation.pairs import AnswerPair
from macpo.errors import ConfigError, MacpoError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise ConfigError(
        "the page for judgments needs starlette and uvicorn; install them with: "
        "pip install 'macpo[annotate]'"
    ) from error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MOST_BYTES = 10_000
CHOICES = ("left", "right", "tie")

Handler = Callable[[JudgmentFile, Mapping[str, Any]], dict[str, Any]]


def make_app(file: JudgmentFile, host: str) -> Starlette:
    """Return the application.

    Args:
        file: where pairs come from and judgments go.
        host: the address that it is served at.
    """
    page = resources.files("macpo.annotation").joinpath("page.html").read_text(encoding="utf-8")
    headers = {"Content-Security-Policy": content_security_policy(page), **PRIVATE}

    async def show_page(request: Request) -> Response:
        return HTMLResponse(page, headers=headers)

    async def start(request: Request) -> Response:
        return _reply({"pairs": len(file.pairs), "annotators": file.annotators()})

    async def next_pair(request: Request) -> Response:
        return _answered(_next, file, request.query_params)

    async def judge(request: Request) -> Response:
        return _answered(_judge, file, await _body(request))

    async def undo(request: Request) -> Response:
        return _answered(_undo, file, await _body(request))

    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/api/start", start),
            Route("/api/next", next_pair),
            Route("/api/judge", judge, methods=["POST"]),
            Route("/api/undo", undo, methods=["POST"]),
        ]
    )
    app.add_middleware(OwnPageOnly, host=host)
    return app


PRIVATE = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def content_security_policy(page: str) -> str:
    """Return the policy that lets a page run its own script and style, by hash, and ask us only."""
    sources = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


class OwnPageOnly:
    """Refuses requests that come from elsewhere than the page; an ASGI middleware.

    Args:
        app: what is behind it.
        host: the address that we are served at.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _reply({"error": refusal}, 403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        request = Request(scope)
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or not is_own_host(hosts[0], self._host):
            return "asked under a name that is not this server's; use the address that it printed"
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{hosts[0]}":
            return "asked from another page"
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "asked from another page"
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        if request.method not in ("GET", "HEAD") and kind != "application/json":
            return "only JSON is taken"
        return None


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_own_host(header: str, served: str) -> bool:
    """Tell whether a Host header is ours.

    That is the name that we are served at, or a loopback address; where other machines are let in,
    any address in figures: names alone can be pointed elsewhere by whoever owns them.
    """
    name = re.sub(r":\d{1,5}$", "", header).removeprefix("[").removesuffix("]").lower()
    if is_loopback(name) or name == served.lower():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return not is_loopback(served)


def _next(file: JudgmentFile, asked: Mapping[str, Any]) -> dict[str, Any]:
    annotator = annotator_name(asked.get("annotator"))
    return _state(file, annotator, file.next_pair(annotator))


def _judge(file: JudgmentFile, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Keep a judgment, and return what comes next; `kept` is false where it had been made."""
    annotator = annotator_name(asked.get("annotator"))
    pair, choice = asked.get("pair"), asked.get("choice")
    if not isinstance(pair, str) or choice not in CHOICES:
        raise ConfigError(f"a judgment has a pair, and a choice of {', '.join(CHOICES)}")
    left = left_side(pair, annotator)
    right: Literal["one", "other"] = "other" if left == "one" else "one"
    verdict = {"left": left, "right": right, "tie": "tie"}[choice]
    kept = file.judge(pair, annotator, verdict, _seconds(asked.get("seconds")))  # type: ignore[arg-type]
    return {**_next(file, asked), "kept": kept}


def _undo(file: JudgmentFile, asked: Mapping[str, Any]) -> dict[str, Any]:
    annotator = annotator_name(asked.get("annotator"))
    pair = file.undo(annotator)
    return {
        **_state(file, annotator, pair or file.next_pair(annotator)),
        "undone": pair is not None,
    }


def _state(file: JudgmentFile, annotator: str, pair: AnswerPair | None) -> dict[str, Any]:
    """Return how far a person is, and the pair to be shown, its answers where he sees them."""
    state: dict[str, Any] = {
        "annotator": annotator,
        "done": file.annotators().get(annotator, 0),
        "pairs": len(file.pairs),
        "pair": None,
    }
    if pair is not None:
        texts = (pair.one.text, pair.other.text)
        left, right = texts if left_side(pair.id, annotator) == "one" else texts[::-1]
        messages = [message.to_json() for message in pair.prompt.messages]
        state["pair"] = {"id": pair.id, "prompt": messages, "left": left, "right": right}
    return state


def _seconds(value: object) -> float | None:
    """Read how long a pair was looked at; what is no sensible number is nobody's measurement."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return round(float(value), 1) if 0 <= value < 1e6 else None


async def _body(request: Request) -> Mapping[str, Any]:
    """Read a small JSON object; anything else is an empty one, which handlers refuse."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _answered(handler: Handler, file: JudgmentFile, asked: Mapping[str, Any]) -> Response:
    """Answer a request; what is wrong with it is told in one line, on the page."""
    try:
        return _reply(handler(file, asked))
    except ConfigError as error:
        return _reply({"error": str(error)}, 400)
    except MacpoError as error:
        return _reply({"error": str(error)}, 500)


def _reply(value: Mapping[str, Any], status: int = 200) -> Response:
    # ASCII, since a text may hold half of a surrogate pair, which UTF-8 has no place for.
    return _AsciiJSON(value, status, headers=PRIVATE)


class _AsciiJSON(JSONResponse):
    def render(self, content: Any) -> bytes:
        """Write JSON."""
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode()


def serve(file: JudgmentFile, host: str, port: int, started: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        file: where pairs come from and judgments go.
        host: the address to listen at; anything but a loopback address lets other machines in.
        port: likewise; 0 takes a free one.
        started: called with the page's address when it can be opened.

    Raises:
        ConfigError: nobody can listen there.
    """
    app = make_app(file, host)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}; name another with "
            "--port (0 takes a free one)"
        ) from error
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, lifespan="off"
    )
    with listening:
        started(f"http://{shown}:{listening.getsockname()[1]}/")
        uvicorn.Server(config).run(sockets=[listening])
