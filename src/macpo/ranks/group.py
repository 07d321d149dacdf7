"""Several ranks, over torch.distributed: gloo for words and tensors on CPUs, NCCL for GPUs.

Sums are made here and not by `all_reduce`, whose order is the backend's own: every rank adds up one
slice of the tensors, in the order of the ranks, and hands it to all others. That is as much traffic
as a ring's. What is said is JSON; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from macpo.errors import RanksError

PATIENCE = timedelta(minutes=30)
"""How long a rank waits within a stage for another that is alive but does not come."""

FOREVER = timedelta(days=365)
"""How long ranks wait for an order: rank 0 may be at work by itself, or wait for another run."""

BUCKET = 2**24
"""Numbers in one exchange of a sum: 64 MiB."""

HEADER = 8  # bytes: the length of what is said
FIRST = 1024  # bytes that go at once; longer words take a second exchange


class Group:
    """Ranks over torch's default process group.

    Args:
        local_rank: which of those on this machine it is.
        on_this_machine: how many of them there are.
        blame: says, once one was lost, which one and why; None if that cannot be told.
    """

    def __init__(
        self,
        *,
        local_rank: int,
        on_this_machine: int,
        blame: Callable[[], str | None] | None = None,
    ) -> None:
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()
        self.local_rank = local_rank
        self.on_this_machine = on_this_machine
        self._blame = blame
        with self._telling_of_losses():
            self._words = dist.new_group(backend="gloo", timeout=PATIENCE)
            self._orders = dist.new_group(backend="gloo", timeout=FOREVER)

    @property
    def leads(self) -> bool:
        """See `Ranks`, as for the rest."""
        return self.rank == 0

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """See `Ranks.sum`."""
        with self._telling_of_losses(), torch.no_grad():
            for pieces in _buckets(tensors):
                self._sum(pieces)

    def _sum(self, pieces: Sequence[Tensor]) -> None:
        """Add up one bucket: its slice r is rank r's to add up."""
        flat = torch.cat([piece.float() for piece in pieces])
        count = len(flat)
        flat = torch.nn.functional.pad(flat, (0, -count % self.size))
        # Those on CPUs over our own group: whoever made the default one chose its backend.
        group = self._words if flat.device.type == "cpu" else None
        slices = torch.empty_like(flat)
        dist.all_to_all_single(slices, flat, group=group)
        first, *others = slices.view(self.size, -1)
        total = first.clone()
        for other in others:
            total += other
        dist.all_gather(list(flat.view(self.size, -1)), total, group=group)
        lengths = [len(piece) for piece in pieces]
        for piece, found in zip(pieces, torch.split(flat[:count], lengths), strict=True):
            piece.copy_(found)

    def gather(self, value: Any) -> list[Any]:
        """See `Ranks.gather`."""
        words = json.dumps(value).encode()
        with self._telling_of_losses():
            heads = self._all_gather(_head(words))
            lengths = [int.from_bytes(head[:HEADER], "big") for head in heads]
            said = [head[HEADER:] for head in heads]
            if (longest := max(lengths)) > FIRST:
                rests = self._all_gather(words[FIRST:].ljust(longest - FIRST, b"\0"))
                said = [start + rest for start, rest in zip(said, rests, strict=True)]
        return [json.loads(text[:n]) for text, n in zip(said, lengths, strict=True)]

    def _all_gather(self, words: bytes) -> list[bytes]:
        """Return the bytes of all ranks, as many of each."""
        mine = torch.frombuffer(bytearray(words), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine, group=self._words)
        return [tensor.numpy().tobytes() for tensor in found]

    def hear(self, order: Any = None) -> Any:
        """See `Ranks.hear`."""
        words = json.dumps(order).encode()
        with self._telling_of_losses():
            head = self._from_first(_head(words))
            length = int.from_bytes(head[:HEADER], "big")
            said = head[HEADER:]
            if length > FIRST:
                said += self._from_first(words[FIRST:].ljust(length - FIRST, b"\0"))
        return json.loads(said[:length])

    def _from_first(self, words: bytes) -> bytes:
        """Return rank 0's bytes, as many as one's own."""
        mine = torch.frombuffer(bytearray(words), dtype=torch.uint8)
        dist.broadcast(mine, src=0, group=self._orders)
        return mine.numpy().tobytes()

    @contextlib.contextmanager
    def _telling_of_losses(self) -> Iterator[None]:
        """Turn what the backend says of a rank that is gone into one line."""
        try:
            yield
        except RuntimeError as error:
            blamed = self._blame() if self._blame is not None else None
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RanksError(
                blamed
                or f"rank {self.rank} of {self.size} has lost another one ({reason}); run the same "
                "command to go on from the last checkpoint"
            ) from error


def _head(words: bytes) -> bytes:
    """Return the length of words and their first bytes, of a fixed length together."""
    return len(words).to_bytes(HEADER, "big") + words[:FIRST].ljust(FIRST, b"\0")


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield flat views of tensors, cut and put together to buckets of at most `BUCKET` numbers."""
    bucket: list[Tensor] = []
    room = BUCKET
    for tensor in tensors:
        rest = tensor.view(-1)
        while len(rest):
            piece, rest = rest[:room], rest[room:]
            bucket.append(piece)
            room -= len(piece)
            if not room:
                yield bucket
                bucket, room = [], BUCKET
    if bucket:
        yield bucket
