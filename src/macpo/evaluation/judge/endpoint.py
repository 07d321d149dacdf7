"""One request to a judge: an OpenAI-compatible server, with patience for what passes by itself.

A server that is busy (429), broken (5xx) or silent is asked again after a pause that doubles, or
after the one that it asks for. What no pause mends (a wrong key, a model that it does not have) is
one line at once. The key comes from the environment and goes nowhere but into the request.
"""

from __future__ import annotations

import email.utils
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from macpo.errors import ConfigError, ModelError

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the second attempt, and before any later one."""

FIRST_RETRIES = 2
"""Of the very first request, to a server that cannot be reached."""

LONGEST_ASKED = 600.0
"""Seconds that a server may ask us to wait; one that asks for more has no quota left."""

RETRIED = frozenset({408, 409, 425, 429})
"""Statuses below 500 that pass."""

SPENT = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of a 429 that does not pass."""

OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge wrote, and the tokens that were counted; None where the server tells none."""

    text: str
    tokens_in: int | None
    tokens_out: int | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A judge: where it is and how it is asked.

    Attributes:
        model: as the server calls it.
        base_url: of the server; None is OpenAI's.
        api_key_env: name of the environment variable with the key; None for servers without one.
        parameters: of every request, such as `temperature`.
        timeout: seconds that one request may take.
        retries: of a request, at most.
    """

    model: str
    base_url: str | None
    api_key_env: str | None
    parameters: Mapping[str, Any]
    timeout: float
    retries: int

    @property
    def address(self) -> str:
        """Where it is, for people and keys."""
        return self.base_url or OPENAI

    def check(self) -> None:
        """Look for what is needed before the first request.

        Raises:
            ConfigError: the client's package or the key is missing.
        """
        try:
            import openai  # noqa: F401
        except ImportError:
            raise ConfigError(
                "judge needs the openai package: pip install 'macpo[judge]'"
            ) from None
        self._key()

    def connect(self) -> Connection:
        """Return a connection to it, which several threads may use.

        Raises:
            ConfigError: as `check`.
        """
        self.check()
        import openai

        client = openai.OpenAI(
            api_key=self._key(), base_url=self.address, max_retries=0, timeout=self.timeout
        )
        return Connection(self, client)

    def hide(self, text: str) -> str:
        """Return a text in one line, without the key in it."""
        key = self._key()
        plain = text.replace(key, "***") if self.api_key_env else text
        return " ".join(re.sub(r"sk-[\w*-]+", "***", plain).split())[:300]

    def _key(self) -> str:
        if self.api_key_env is None:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"judge's key: the environment variable {self.api_key_env} is not set; set it, or "
                "name another one in api_key_env (null for a server that asks for no key)"
            )
        return key


class Connection:
    """A client of an endpoint; see `Endpoint.connect`."""

    def __init__(self, endpoint: Endpoint, client: Any) -> None:
        self._endpoint = endpoint
        self._client = client
        self._first_pause = FIRST_PAUSE

    def close(self) -> None:
        """Close what is open."""
        self._client.close()

    def ask(
        self, messages: Sequence[Mapping[str, str]], stop: threading.Event, *, first: bool = False
    ) -> Reply | None:
        """Ask until there is a reply; None when `stop` was set first.

        Args:
            messages: the request.
            stop: ends the waiting.
            first: nothing was asked before: a server that cannot be reached is not there, and a
                request that it does not take is faulty. Later on, what it does not take is this
                one request (a filter of contents, for example), and the reply is an empty one.

        Raises:
            ModelError: the server refuses, or has failed too often.
        """
        retries = self._endpoint.retries
        for attempt in range(retries + 1):
            if stop.is_set():
                return None
            try:
                return self._ask_once(messages)
            except _Passing as failure:
                unreachable = first and failure.unreachable and attempt >= FIRST_RETRIES
                if unreachable or attempt == retries:
                    raise self._given_up(attempt + 1, failure) from failure.__cause__
                pause = min(self._first_pause * 2**attempt, LONGEST_PAUSE)
                stop.wait(pause if failure.asked is None else failure.asked)
            except _NotTaken as failure:
                if first:
                    raise ModelError(str(failure)) from failure.__cause__
                return Reply("", None, None)
        return None

    def _ask_once(self, messages: Sequence[Mapping[str, str]]) -> Reply:
        import openai

        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=self._endpoint.model,
                messages=list(messages),
                extra_body=dict(self._endpoint.parameters),
            )
        except openai.APIStatusError as error:
            raise self._status_failure(error) from error
        except openai.APIConnectionError as error:  # timeouts too
            late = isinstance(error, openai.APITimeoutError)
            what = f"no reply in {self._endpoint.timeout:g} s" if late else "no connection"
            cause = f" ({self._endpoint.hide(str(error.__cause__))})" if error.__cause__ else ""
            raise _Passing(f"{what}{cause}", unreachable=not late) from error
        try:
            value = raw.http_response.json()
            text = value["choices"][0]["message"]["content"]
            usage = value.get("usage") or {}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Passing("a reply that is no chat completion") from error
        return Reply(
            str(text or ""),
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
        )

    def _status_failure(self, error: Any) -> Exception:
        """Return what to raise for a status: it passes, or it does not."""
        status, code = int(error.status_code), str(getattr(error, "code", "") or "")
        message = str(getattr(error, "message", "") or error)
        said = self._endpoint.hide(message.removeprefix(f"Error code: {status} - "))
        asked = _asked_pause(error.response.headers, time.time)
        if (status in RETRIED or status >= 500) and code not in SPENT:
            if asked is None or asked <= LONGEST_ASKED:
                return _Passing(f"status {status}: {said}", asked)
            said = f"it asks to wait for {asked:.0f} s; {said}"
        remedy = {
            401: f"check the key in {self._endpoint.api_key_env or 'api_key_env'}",
            403: f"check the key in {self._endpoint.api_key_env or 'api_key_env'}",
            404: "check model and base_url",
            429: "check your quota there",
        }.get(status, "check the judge's options (temperature, max_tokens, body)")
        text = (
            f"judge {self._endpoint.model} at {self._endpoint.address} refuses (status {status}: "
            f"{said}); {remedy}"
        )
        return _NotTaken(text) if status in (400, 413, 422) else ModelError(text)

    def _given_up(self, attempts: int, failure: _Passing) -> ModelError:
        return ModelError(
            f"judge {self._endpoint.model} at {self._endpoint.address}: {attempts} attempts "
            f"failed, the last with {failure}; check base_url and the server. Verdicts so far are "
            "kept: run the same command to go on"
        )


class _Passing(Exception):
    """A failure that may pass.

    `asked` is the pause in seconds that the server wants; `unreachable` says that there was none.
    """

    def __init__(self, text: str, asked: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(text)
        self.asked = asked
        self.unreachable = unreachable


class _NotTaken(Exception):
    """The server does not take this request; another one it may take."""


def _asked_pause(headers: Mapping[str, str], now: Callable[[], float]) -> float | None:
    """Return the seconds that Retry-After asks for: a number of them, or a date."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - now(), 0.0)
    except ValueError:
        return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
