"""All requests of a judging stage: what is known is not asked, the rest some at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from macpo.evaluation.judge.comparison import Comparison, Verdict
from macpo.evaluation.judge.endpoint import Connection, Endpoint, Reply
from macpo.evaluation.judge.replies import Replies, request_key
from macpo.evaluation.judge.wording import messages_for, read_verdict

LOOK_SECONDS = 0.5
"""How often it is looked whether to stop."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge said to one comparison: its verdict, None if malformed, and all its replies."""

    verdict: Verdict | None
    replies: tuple[Reply, ...]


class Asking:
    """Puts comparisons to a judge.

    Args:
        endpoint: the judge.
        criterion: what it is to look at.
        replies: what was paid for before; gets the new ones.
        attempts: at one comparison, while replies are malformed.
        concurrency: requests under way at a time, at most.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        criterion: str,
        replies: Replies,
        *,
        attempts: int,
        concurrency: int,
    ) -> None:
        self._endpoint = endpoint
        self._criterion = criterion
        self._replies = replies
        self._attempts = attempts
        self._concurrency = concurrency

    def known(self, comparison: Comparison) -> Judgement | None:
        """Return what is known of a comparison; None while it has to be asked."""
        replies = self._replies.to(self._key(comparison))
        return self._settled(replies)

    def ask(
        self, comparisons: Sequence[Comparison], progress: Callable[[int], None]
    ) -> dict[Comparison, Judgement]:
        """Return the judgements of comparisons; equal ones are asked once.

        Args:
            comparisons: any number.
            progress: is told how many have been settled, again and again; may raise to stop, after
                which nothing more is asked. What is under way is waited for and kept.

        Raises:
            ModelError: the judge cannot be asked; what was replied is kept.
        """
        found = {c: self.known(c) for c in dict.fromkeys(comparisons)}
        to_ask = [c for c, judgement in found.items() if judgement is None]
        if to_ask:
            connection = self._endpoint.connect()
            try:
                self._ask_all(connection, to_ask, len(found) - len(to_ask), progress)
            finally:
                connection.close()
        judgements = {c: self.known(c) for c in found}
        return {c: judgement for c, judgement in judgements.items() if judgement is not None}

    def _ask_all(
        self,
        connection: Connection,
        comparisons: Sequence[Comparison],
        done: int,
        progress: Callable[[int], None],
    ) -> None:
        stop = threading.Event()
        with ThreadPoolExecutor(self._concurrency, "judge") as threads:
            try:
                # One alone first: what is wrong with key, model or server is found by it.
                first = threads.submit(self._settle, connection, comparisons[0], stop, first=True)
                self._wait({first}, done, progress)
                rest = {
                    threads.submit(self._settle, connection, comparison, stop)
                    for comparison in comparisons[1:]
                }
                self._wait(rest, done + 1, progress)
            except BaseException:
                stop.set()
                threads.shutdown(wait=True, cancel_futures=True)
                raise

    def _wait(self, waiting: set[Future[None]], done: int, progress: Callable[[int], None]) -> None:
        while waiting:
            settled, waiting = wait(waiting, LOOK_SECONDS, FIRST_COMPLETED)
            done += len(settled)
            for future in settled:
                future.result()
            progress(done)

    def _settle(
        self,
        connection: Connection,
        comparison: Comparison,
        stop: threading.Event,
        *,
        first: bool = False,
    ) -> None:
        """Ask until there is a verdict, or attempts are used up; keep every reply."""
        messages, key = messages_for(comparison, self._criterion), self._key(comparison)
        while self._settled(self._replies.to(key)) is None:
            reply = connection.ask(messages, stop, first=first)
            if reply is None:
                return
            self._replies.add(key, reply)

    def _settled(self, replies: Sequence[Reply]) -> Judgement | None:
        """Return the judgement that replies come to; None while another attempt is due."""
        for number, reply in enumerate(replies, 1):
            verdict = read_verdict(reply.text)
            if verdict is not None:
                return Judgement(verdict, tuple(replies[:number]))
        return Judgement(None, tuple(replies)) if len(replies) >= self._attempts else None

    def _key(self, comparison: Comparison) -> str:
        return request_key(self._endpoint, messages_for(comparison, self._criterion))
