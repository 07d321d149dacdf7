"""What judges were paid for: every reply, kept in the store, one fsynced line each.

A reply is found again by its request: server, model, parameters and messages. Other runs that share
the store find it too. After kill -9 all is there but the requests that were under way.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from macpo.evaluation.judge.endpoint import Endpoint, Reply
from macpo.seeds import digest
from macpo.store import Journal, read_journal
from macpo.store.atomic import make_directory

FILE = "judge-replies.jsonl"


def request_key(endpoint: Endpoint, messages: Sequence[Mapping[str, str]]) -> str:
    """Return the key of a request."""
    asked = [dict(message) for message in messages]
    return digest([endpoint.address, endpoint.model, dict(endpoint.parameters), asked])


class Replies:
    """The replies in a folder, by request; several to one where some were malformed.

    Args:
        folder: made when the first reply comes.

    Raises:
        DamagedError: the file there cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._journal = Journal(folder / FILE)
        self._lock = threading.Lock()
        self._known: defaultdict[str, list[Reply]] = defaultdict(list)
        for event in read_journal(folder / FILE):
            self._known[event["key"]].append(_read(event))

    def to(self, key: str) -> list[Reply]:
        """Return the replies to a request, oldest first."""
        with self._lock:
            return list(self._known[key])

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply; it survives a power loss once this returns.

        Raises:
            StoreError: it cannot be written.
        """
        with self._lock:
            make_directory(self._folder)
            self._journal.append(
                "replied",
                key=key,
                text=reply.text,
                tokens_in=reply.tokens_in,
                tokens_out=reply.tokens_out,
            )
            self._known[key].append(reply)


def _read(event: Mapping[str, Any]) -> Reply:
    return Reply(event["text"], event.get("tokens_in"), event.get("tokens_out"))
