"""What the machine is good at: dtypes are chosen by timing, memory is kept only when asked."""

from __future__ import annotations

import ctypes
import itertools
import platform
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from macpo import machine

CPU = torch.device("cpu")

glibc_only = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's"
)


def take(monkeypatch: pytest.MonkeyPatch, seconds: Iterator[float]) -> None:
    """Let every timed stretch take the next of `seconds`."""
    clock = itertools.accumulate(x for took in seconds for x in (0.0, took))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))


def test_gflops_are_two_operations_per_weight_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, itertools.repeat(0.5))
    operations = machine.REPEATS * 2 * 2048 * 576 * 1536
    assert machine.matmul_gflops("float32", CPU) == pytest.approx(operations / 0.5 / 1e9)


def test_best_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    take(monkeypatch, itertools.chain([9.0, 8.0, 2.0, 4.0], itertools.repeat(8.0)))
    operations = machine.REPEATS * 2 * 2048 * 576 * 1536
    assert machine.matmul_gflops("float32", CPU) == pytest.approx(operations / 2.0 / 1e9)


def test_product_is_in_the_dtype_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    linear = torch.nn.functional.linear

    def recorded(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        seen.add((x.dtype, weight.dtype, x.device.type))
        return linear(x[:1], weight[:1])

    monkeypatch.setattr(torch.nn.functional, "linear", recorded)
    assert machine.matmul_gflops("bfloat16", CPU) > 0
    assert seen == {(torch.bfloat16, torch.bfloat16, "cpu")}


@pytest.mark.parametrize(
    ("bfloat16", "chosen"), [(40.0, "float32"), (219.0, "float32"), (241.0, "bfloat16")]
)
def test_bfloat16_is_chosen_where_it_measures_a_fifth_faster(
    bfloat16: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"float32": 200.0, "bfloat16": bfloat16}
    monkeypatch.setattr(machine, "matmul_gflops", lambda dtype, device: speeds[dtype])
    assert machine.fastest_dtype(CPU) == (chosen, speeds)


def test_dtypes_are_timed_by_turns_and_the_best_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stretch in which the whole machine is slow must not decide."""
    speeds = iter([50.0, 400.0, 200.0, 100.0])
    asked = []

    def measure(dtype: str, device: torch.device) -> float:
        asked.append(dtype)
        return next(speeds)

    monkeypatch.setattr(machine, "matmul_gflops", measure)
    assert machine.fastest_dtype(CPU) == ("bfloat16", {"float32": 200.0, "bfloat16": 400.0})
    assert asked == ["float32", "bfloat16"] * 2


FAULTS = """
import resource, sys
from macpo.machine import tune_allocator
tuned = tune_allocator() if sys.argv[1] == "tuned" else False
assert "torch" not in sys.modules, "the command line would start slowly"
import torch
for number in range(30):
    if number == 20:  # it takes some until aligned blocks find room where others were
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(9_000_000)  # 36 MB: more than glibc ever learns to keep by itself
print(tuned, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[bool, int]:
    """Return whether a new process was tuned, and its page faults when it takes 36 MB ten times."""
    run = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
    )
    tuned, count = run.stdout.split()
    return tuned == "True", int(count)


@glibc_only
def test_tuned_allocator_keeps_memory_and_importing_tunes_nothing() -> None:
    tuned, few = faults("tuned")
    untuned, many = faults("untouched")
    assert tuned
    assert not untuned
    assert many > 10 * few + 100


class OldLibc:
    """glibc before 2.35 refuses thresholds above 32 MiB."""

    def __init__(self) -> None:
        self.set: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == machine.M_MMAP_THRESHOLD and value > 2**25:
            return 0
        self.set[parameter] = value
        return 1


def test_old_glibc_gets_the_threshold_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = OldLibc()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    assert machine.tune_allocator()
    assert libc.set == {machine.M_MMAP_THRESHOLD: 2**25, machine.M_TRIM_THRESHOLD: 2**31 - 1}


@pytest.mark.parametrize(("system", "libc"), [("darwin", ""), ("linux", "musl"), ("win32", "")])
def test_other_allocators_are_left_alone(
    system: str, libc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert not machine.tune_allocator()
