"""Ranks on several machines without a launcher: the others stand by until rank 0 says where it is.

The other machine is a fork of this process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

import psutil
import pytest
import torch

from macpo.errors import RanksError
from macpo.ranks import Ranks, launch
from macpo.ranks.launch import HOST, Seat, speak_at, standing_by, started

INTERFACE = "GLOO_SOCKET_IFNAME"


@pytest.fixture(autouse=True)
def _no_interface_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERFACE, "")  # so that it is as before afterwards
    monkeypatch.delenv(INTERFACE)


def elsewhere(work: Callable[[Ranks], object]) -> tuple[Callable[[str, int], None], int]:
    """Fork a machine whose one rank works with rank 0; return how to call it, and its process."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            host, port = json.loads(os.read(reading, 1000))
            with standing_by(Seat(1, 2, host, port, 0, 1), (), HOST) as ranks:
                work(ranks)
            status = 0
        except RanksError:
            status = 75
        finally:
            os._exit(status)

    def call(host: str, port: int) -> None:
        os.write(writing, json.dumps([host, port]).encode())

    return call, process


def meet(ranks: Ranks) -> tuple[list[list[int]], list[float]]:
    """Return what both ranks say of themselves, and the sum of their numbers."""
    numbers = torch.full((3,), 2.0**ranks.rank)
    said = ranks.gather([ranks.rank, ranks.local_rank, ranks.on_this_machine])
    ranks.sum([numbers])
    return said, numbers.tolist()


def test_two_machines_of_a_rank_each_work_together() -> None:
    call, process = elsewhere(meet)
    with started(2, (), here=1, meet=call) as ranks:
        assert meet(ranks) == ([[0, 0, 1], [1, 0, 1]], [3.0] * 3)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_a_rank_lost_elsewhere_is_told_here_and_the_other_way_round() -> None:
    call, process = elsewhere(lambda ranks: os._exit(0))
    with started(2, (), here=1, meet=call) as ranks, pytest.raises(RanksError) as raised:
        ranks.gather(None)
    os.waitpid(process, 0)
    assert "rank 0 of 2 has lost another one" in str(raised.value)

    call, process = elsewhere(lambda ranks: ranks.hear())
    with started(2, (), here=1, meet=call):
        pass  # it goes without an order, as one that is killed
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 75


def test_who_finds_nobody_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "START_SECONDS", 1)
    with (
        pytest.raises(RanksError, match=r"rank 1 of 2 does not find rank 0 at 127\.0\.0\.1:9"),
        standing_by(Seat(1, 2, HOST, 9, 0, 1), (), HOST),
    ):
        pass


def test_gloo_speaks_from_the_address_by_which_others_know_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    [name] = [n for n, found in psutil.net_if_addrs().items() if HOST in {a.address for a in found}]
    speak_at(HOST)
    assert os.environ[INTERFACE] == name
    monkeypatch.setenv(INTERFACE, "of-the-users-choice")
    speak_at(HOST)
    assert os.environ[INTERFACE] == "of-the-users-choice"


def test_a_seat_is_read_as_it_was_written() -> None:
    seat = Seat(3, 8, "10.0.0.7", 29500, 1, 2)
    assert Seat.read(seat.words()) == seat
