"""What `dtype: auto` means: decided once by timing, and kept in a file from then on.

Keys of stages depend on the dtype, so a resume on another kind of machine keeps it. A run keeps the
decision in its run.json, a comparison in its compare.json, for all of its cells.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from macpo import machine
from macpo.errors import StoreError
from macpo.store import write_text_atomic

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Resolved:
    """What was resolved once: the dtype, and where and how.

    `matmul_gflops` are the speeds of matrix products by dtype (GFLOP/s), empty when they were not
    timed; `threads` those of torch on the CPU, `instructions` which of them torch's kernels use
    (`AVX2`), `processes` how many ranks share the work. Fields that an older macpo did not write
    are empty.
    """

    dtype: str
    device: str = ""
    machine: str = ""
    matmul_gflops: Mapping[str, float] = field(default_factory=dict, hash=False)
    threads: int = 0
    torch: str = ""
    transformers: str = ""
    peft: str = ""
    instructions: str = ""
    processes: int = 1


def read_resolved(path: Path) -> Resolved | None:
    """Return what was resolved; None before the first run.

    Raises:
        StoreError: the file is there but is not what macpo writes.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete it to resolve anew") from error
    if not isinstance(value, dict) or value.get("dtype") not in (*machine.DTYPES,):
        raise StoreError(f"{path} names no dtype; delete it to resolve anew")
    defaults = asdict(Resolved(dtype=""))
    for name, default in defaults.items():
        if name in value and not _fits(default, value[name]):
            raise StoreError(f"{path}: {name} is of another type; delete it to resolve anew")
    return Resolved(**{f.name: value[f.name] for f in fields(Resolved) if f.name in value})


def _fits(default: object, value: object) -> bool:
    """Tell whether a value is of the kind of a field of `Resolved` with that default."""
    if isinstance(default, int):
        return isinstance(value, int) and 0 <= value < 1 << 16
    if isinstance(default, str):
        return isinstance(value, str)
    return isinstance(value, dict) and all(isinstance(v, int | float) for v in value.values())


def known_dtype(asked: str, before: Resolved | None) -> str | None:
    """Return the dtype that a config's `dtype` means as far as is known; None to be timed.

    Args:
        asked: `auto` or a dtype.
        before: what was resolved before.
    """
    if asked != "auto":
        return asked
    return None if before is None else before.dtype


def resolve_once(
    path: Path,
    asked: str,
    device: torch.device,
    note: Callable[[str], None],
    *,
    whose: str = "",
    processes: int = 1,
) -> Resolved:
    """Return what was resolved before, or decide now and keep it.

    Args:
        path: where the decision is kept.
        asked: the config's `dtype`: `auto` to time, or a dtype, which stands if it differs from
            what was decided before.
        device: on which to time.
        note: is told of a decision, and of an earlier one that another machine made.
        whose: the dtype is, in that note: ` for all cells`.
        processes: how many ranks share the work, to be kept beside it.

    Raises:
        StoreError: the file cannot be read or written.
    """
    before = read_resolved(path)
    if before is not None and asked in ("auto", before.dtype):
        if before.machine and before.machine != platform.node():
            note(
                f"dtype stays {before.dtype}, as resolved on {before.machine}; to change it, set "
                "dtype (everything is then run anew)"
            )
        return before
    measured: dict[str, float] = {}
    dtype = asked
    if asked == "auto":
        dtype, measured = machine.fastest_dtype(device)
        speeds = ", ".join(f"{name} {speed:.0f} GFLOP/s" for name, speed in measured.items())
        note(f"dtype: {dtype}{whose} ({speeds} measured here)")
    resolved = _describe(dtype, device, measured, processes)
    write_text_atomic(path, json.dumps(asdict(resolved), indent=1) + "\n", durable=True)
    return resolved


def _describe(
    dtype: str, device: torch.device, measured: Mapping[str, float], processes: int
) -> Resolved:
    """Put a decision beside where it was made."""
    import torch

    return Resolved(
        dtype=dtype,
        device=str(device),
        machine=platform.node(),
        matmul_gflops={name: round(speed, 1) for name, speed in measured.items()},
        threads=torch.get_num_threads(),
        processes=processes,
        **_present(device),
    )


def keep_numerics(
    before: Resolved, device: torch.device, note: Callable[[str], None], processes: int = 1
) -> None:
    """Compute as a run began: with its number of threads on a CPU; note what else has changed.

    Sums come in another order with another number of threads, so that a resumed run would end in
    other bytes than one that was not stopped. With another number of processes it does anyhow.

    Args:
        before: what was resolved when the run began.
        device: where it goes on.
        note: is told of what differs.
        processes: how many ranks share the work now.
    """
    import torch

    if processes != before.processes:
        note(
            f"computing with {processes} process{'es' if processes > 1 else ''}, and not with "
            f"{before.processes} as the run began: finished stages stay, and what is made from now "
            "on differs by rounding from what it would have been"
        )
    elif device.type == "cpu" and before.threads and before.threads != torch.get_num_threads():
        note(
            f"computing with {before.threads} threads, as the run began, and not with "
            f"{torch.get_num_threads()}; other numbers end in other bytes"
        )
        torch.set_num_threads(before.threads)
    now = {"device": str(device), **_present(device)}
    changed = [
        f"{name} {was}, now {now[name]}"
        for name in now
        if (was := getattr(before, name)) and was != now[name]
    ]
    if changed:
        note(
            f"the run began with {'; '.join(changed)}: finished stages stay, and what is made from "
            "now on may differ by rounding from what it would have been"
        )


def _present(device: torch.device) -> dict[str, str]:
    """Return what decides rounding here beside dtype and threads, by fields of `Resolved`."""
    import torch
    import transformers

    cpu = device.type == "cpu"
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": importlib.metadata.version("peft"),
        "instructions": torch.backends.cpu.get_cpu_capability() if cpu else "",
    }
