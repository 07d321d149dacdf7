"""What this machine is good at, found by trying: matrix products, and memory from the allocator."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import time
from typing import TYPE_CHECKING

from macpo.errors import ConfigError

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16")

# The shape of a small model's MLP product: tokens x width, width x inner width.
TOKENS, WIDTH, INNER = 2048, 576, 1536
REPEATS, ROUNDS = 4, 3
ALTERNATIONS = 2
COPIED_BYTES = 2**28

# mallopt's parameters, of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_THRESHOLD = 2**31 - 1
MMAP_THRESHOLDS = (2**30, 2**25)  # glibc before 2.35 takes no more than the second


def choose_device(asked: str, processes: int = 1, local_rank: int = 0) -> torch.device:
    """Return the device of a run.

    Args:
        asked: `auto`, `cpu` or `cuda`.
        processes: ranks on this machine; each has a GPU of its own.
        local_rank: which of them this one is.

    Raises:
        ConfigError: a GPU is asked for and none is here, or there are fewer than processes.
    """
    import torch

    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise ConfigError("device: cuda, but torch finds no GPU; use device: cpu or auto")
    if not available or asked == "cpu":
        return torch.device("cpu")
    if processes == 1:
        return torch.device("cuda")
    found = torch.cuda.device_count()
    if processes > found:
        raise ConfigError(
            f"{processes} processes are to run on this machine, one to a GPU, but it has {found}; "
            "lower engine.processes, or set device: cpu"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def use_threads(number: int | None = None) -> int:
    """Set how many threads a CPU's operators take in this process, if given; return the number."""
    import torch

    if number is not None:
        torch.set_num_threads(number)
    return int(torch.get_num_threads())


def matmul_gflops(
    dtype: str, device: torch.device, *, rounds: int = ROUNDS, repeats: int = REPEATS
) -> float:
    """Return the best measured speed of a matrix product, in GFLOP/s (10^9 operations a second).

    Takes a fraction of a second. The best of several rounds counts: others use the machine too.
    """
    import torch

    kind = getattr(torch, dtype)
    x = torch.ones(TOKENS, WIDTH, dtype=kind, device=device)
    weight = torch.ones(INNER, WIDTH, dtype=kind, device=device)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(rounds + 1):  # the first one warms up
            started = time.perf_counter()
            for _ in range(repeats):
                torch.nn.functional.linear(x, weight)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - started)
    return repeats * 2 * TOKENS * WIDTH * INNER / best / 1e9


@functools.cache
def measured_gflops(dtype: str, device: torch.device) -> float:
    """Return `matmul_gflops`, measured once in a process and with a few products only."""
    return matmul_gflops(dtype, device, rounds=1, repeats=1)


def copied_gbps(device: torch.device) -> float:
    """Return how fast a device's memory is read and written while it is copied, in GB/s."""
    import torch

    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * COPIED_BYTES / best / 1e9


def memory_gib(device: torch.device) -> float:
    """Return all the memory that a device has, in GiB."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[1] / 2**30
    import psutil  # a dependency of accelerate

    return float(psutil.virtual_memory().total / 2**30)


def fastest_dtype(device: torch.device) -> tuple[str, dict[str, float]]:
    """Return the dtype whose matrix products are fastest here, and the GFLOP/s of each.

    By timing and never by a capability flag: oneDNN calls bf16 supported on CPUs where it is
    emulated and five times slower than float32. bfloat16 has to be a fifth faster to be chosen,
    for its rounding costs accuracy.
    """
    measured = dict.fromkeys(DTYPES, 0.0)
    for _ in range(ALTERNATIONS):  # by turns: a machine's speed drifts
        for dtype in DTYPES:
            measured[dtype] = max(measured[dtype], matmul_gflops(dtype, device))
    faster = measured["bfloat16"] > 1.2 * measured["float32"]
    return ("bfloat16" if faster else "float32"), measured


def tune_allocator() -> bool:
    """Let glibc keep freed memory instead of giving it back to the kernel at every tensor.

    Large tensors are otherwise mapped and unmapped one by one, and every page is cleared by the
    kernel again: 340,000 page faults and 5 to 7 % of the CPU time of a DPO step of a 135M model
    (bench/dpo_step.py), for at most 3 % more memory. For this process, from now on; Linux with
    glibc only.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    kept = any(libc.mallopt(M_MMAP_THRESHOLD, size) for size in MMAP_THRESHOLDS)
    return kept and bool(libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD))
