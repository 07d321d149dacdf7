"""Starting ranks on this machine, or joining those that a launcher has started.

Who calls `started` is rank 0; the others are processes that it starts, which work under a command
of their own and end with it. Where some of them are on other machines, whoever works for us there
calls `standing_by`, and is the first rank of that machine. Under `torchrun` or `accelerate launch`
all ranks run the same command, and each calls `joined`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any

from macpo.errors import ConfigError, RanksError

if TYPE_CHECKING:
    from macpo.ranks.group import Group

HOST = "127.0.0.1"
START_SECONDS = 300  # until a rank has imported torch
END_SECONDS = 10  # until one that is asked to end is ended
WORDS = 2000  # bytes of a rank's last words that are looked at
LOST = 75  # status of a rank that ended because another one was lost (EX_TEMPFAIL)
GO_ON = "run the same command to go on from the last checkpoint"


@dataclass(frozen=True, slots=True)
class Launched:
    """What a launcher's environment says: which rank this process is, and of how many."""

    rank: int
    size: int
    local_rank: int
    on_this_machine: int


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a rank that `started` has started belongs, and where it finds rank 0.

    Attributes:
        rank: which one it is, and `size` of how many.
        host: an address of rank 0's machine, and `port` that of its store there.
        local_rank: which of those on its own machine it is, and `here` of how many.
    """

    rank: int
    size: int
    host: str
    port: int
    local_rank: int
    here: int

    def words(self) -> list[str]:
        """Return arguments of a command, which `read` takes."""
        return [str(getattr(self, field.name)) for field in fields(self)]

    @staticmethod
    def read(words: Sequence[str]) -> Seat:
        """Return the seat that `words` has written."""
        rank, size, host, port, local_rank, here = words
        return Seat(int(rank), int(size), host, int(port), int(local_rank), int(here))


def launched(environment: Mapping[str, str]) -> Launched | None:
    """Return what a launcher (torchrun, accelerate launch) has set; None if none started us.

    Raises:
        ConfigError: it says that there are several processes, but not which one this is.
    """
    size = environment.get("WORLD_SIZE", "").strip() or "1"
    if size == "1":
        return None
    try:
        return Launched(
            int(environment["RANK"]),
            int(size),
            int(environment["LOCAL_RANK"]),
            int(environment.get("LOCAL_WORLD_SIZE", size)),
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"started as one of {size} processes (WORLD_SIZE), but {error} is not set to say which "
            "one; start with torchrun or accelerate launch, or unset WORLD_SIZE"
        ) from None


def check_processes(asked: int | None, environment: Mapping[str, str]) -> Launched | None:
    """Return what `launched` does, where it agrees with the config.

    Args:
        asked: the config's `engine.processes`.
        environment: of this process.

    Raises:
        ConfigError: the launcher started another number of processes.
    """
    found = launched(environment)
    if found is not None and asked not in (None, found.size):
        raise ConfigError(
            f"engine.processes is {asked}, but the launcher has started {found.size} processes "
            "(WORLD_SIZE); remove the key, or start as many"
        )
    return found


def joined(found: Launched) -> Group:
    """Join the ranks that a launcher has started."""
    import torch.distributed as dist

    from macpo.ranks.group import PATIENCE, Group

    if not dist.is_initialized():
        dist.init_process_group(_backend(), timeout=PATIENCE)
    return Group(local_rank=found.local_rank, on_this_machine=found.on_this_machine)


@contextlib.contextmanager
def started(
    size: int,
    command: Sequence[str],
    *,
    here: int | None = None,
    host: str = HOST,
    meet: Callable[[str, int], None] = lambda host, port: None,
) -> Iterator[Group]:
    """Be rank 0 of `size` ranks while the block runs; the others are ended with it.

    Torch's threads are shared out among those of this machine.

    Args:
        size: how many.
        command: of the others; it is given the words of its `Seat` as arguments and calls
            `answered`.
        here: how many of them are on this machine, and are started; by default all. The others
            have to call `standing_by`, machine by machine.
        host: an address at which others find this machine.
        meet: is told where they find rank 0: `host`, and a port.

    Raises:
        RanksError: one of them does not start.
    """
    import torch
    import torch.distributed as dist

    from macpo.ranks.group import PATIENCE, Group

    here = size if here is None else here
    if here < size:
        speak_at(host)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, 0, size, is_master=True, wait_for_workers=False
    )
    before = torch.get_num_threads()
    threads = max(1, before // here)
    others = _Others(Seat(0, size, host, store.port, 0, here), command, threads)
    try:
        torch.set_num_threads(threads)
        meet(host, store.port)
        others.wait_for(store)
        dist.init_process_group(_backend(), store=store, rank=0, world_size=size, timeout=PATIENCE)
        try:
            yield Group(local_rank=0, on_this_machine=here, blame=others.blame)
        finally:
            dist.destroy_process_group()
    finally:
        torch.set_num_threads(before)
        others.end()


@contextlib.contextmanager
def standing_by(seat: Seat, command: Sequence[str], host: str) -> Iterator[Group]:
    """Be the first rank of a machine for a rank 0 on another one, while the block runs.

    The other ranks of this machine are started, and ended with it.

    Args:
        seat: of this rank.
        command: see `started`.
        host: an address of this machine.

    Raises:
        RanksError: rank 0 is not there.
    """
    import torch
    import torch.distributed as dist

    speak_at(host)
    before = torch.get_num_threads()
    threads = max(1, before // seat.here)
    others = _Others(seat, command, threads)
    try:
        torch.set_num_threads(threads)
        ranks = answered(seat, others.blame)
        try:
            yield ranks
        finally:
            dist.destroy_process_group()
    finally:
        torch.set_num_threads(before)
        others.end()


def speak_at(host: str) -> None:
    """Let gloo speak to other machines from an address of this one.

    By itself it takes what the machine's name stands for, which many systems make a loopback
    address. Whoever has named an interface is left to it.
    """
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def answered(seat: Seat, blame: Callable[[], str | None] | None = None) -> Group:
    """Become a rank that `started` waits for.

    Args:
        seat: of this rank.
        blame: see `Group`.

    Raises:
        RanksError: rank 0 is not there.
    """
    import torch.distributed as dist

    from macpo.ranks.group import PATIENCE, Group

    rank, size = seat.rank, seat.size
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            seat.host, seat.port, size, is_master=False, timeout=timedelta(seconds=START_SECONDS)
        )
        store.set(_here(rank), "")
        dist.init_process_group(
            _backend(), store=store, rank=rank, world_size=size, timeout=PATIENCE
        )
    except RuntimeError as error:
        raise RanksError(
            f"rank {rank} of {size} does not find rank 0 at {seat.host}:{seat.port}; look at what "
            "that says, and run again"
        ) from error
    return Group(local_rank=seat.local_rank, on_this_machine=seat.here, blame=blame)


def _here(rank: int) -> str:
    """Return the name under which a rank says that it has started."""
    return f"macpo/here/{rank}"


def _backend() -> str:
    """Return the backends of the default group: NCCL where there are GPUs to talk about."""
    import torch

    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


class _Others:
    """The processes that stand by the first rank of a machine, and what they say at last."""

    def __init__(self, first: Seat, command: Sequence[str], threads: int) -> None:
        self._first = first
        self._words: list[IO[bytes]] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        terminal = os.dup(2)  # for what they say should this process be gone
        try:
            for place in range(1, first.here):
                seat = replace(first, rank=first.rank + place, local_rank=place)
                words = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
                self._words.append(words)
                self._processes.append(
                    subprocess.Popen(
                        [*command, *seat.words(), str(terminal)],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=words,
                        start_new_session=True,  # Ctrl-C is rank 0's to hear
                        pass_fds=[terminal],
                        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                    )
                )
        except BaseException:
            self.end()
            raise
        finally:
            os.close(terminal)

    def wait_for(self, store: Any) -> None:
        """Wait until all have started, on all machines."""
        until = time.monotonic() + START_SECONDS
        here = [_here(rank) for rank in range(1, self._first.size)]
        while not store.check(here):
            lost = self._lost()
            if lost is None and time.monotonic() > until:
                lost = f"a rank has not started within {START_SECONDS} s"
            if lost is not None:
                raise RanksError(f"{lost}; look at what it says, and run again")
            time.sleep(0.02)

    def blame(self) -> str | None:
        """Say which rank has ended, and of what; None if none has."""
        until = time.monotonic() + 2.0  # one that is dying may take a moment
        while (lost := self._lost()) is None and time.monotonic() < until:
            time.sleep(0.02)
        return None if lost is None else f"{lost}; {GO_ON}"

    def _lost(self) -> str | None:
        """Describe a rank that has ended, if possible by itself and not for want of another."""
        numbered = enumerate(self._processes, self._first.rank + 1)
        ended = {rank: process.poll() for rank, process in numbered}
        codes = {rank: code for rank, code in ended.items() if code is not None}
        rank = min(codes, key=lambda rank: codes[rank] == LOST, default=None)
        if rank is None:
            return None
        place, size = rank - self._first.rank - 1, self._first.size
        code, pid = codes[rank], self._processes[place].pid
        if code < 0:
            name = signal.Signals(-code).name
            return f"rank {rank} of {size} (process {pid}) was killed by {name}"
        said = self._last_words(place) or f"it ended with status {code}"
        return f"rank {rank} of {size}: {said}"

    def _last_words(self, place: int) -> str:
        """Return the last line that one of the processes wrote on its stderr."""
        words = self._words[place]
        end = words.seek(0, os.SEEK_END)
        words.seek(max(0, end - WORDS))
        lines = words.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("macpo: ") if lines else ""

    def end(self) -> None:
        """End those that are there still."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for words in self._words:
            words.close()
