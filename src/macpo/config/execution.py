"""The section `execution`: where stages run, and how they are claimed in a store."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from macpo.config.base import Section
from macpo.config.values import Count, CountOrZero, NonNegative, Positive, Text

CLUSTER_KEYS = ("address", "cpus_per_stage", "gpus_per_stage", "processes_per_node", "retries")


class ExecutionConfig(Section):
    """Where stages run; part of no key. A word alone is the backend: `execution: ray`.

    `local` runs them one after another in this process, `ray` side by side on a Ray cluster: that
    of `address` (`auto` for the one on this machine), by default one of this machine alone, for
    this run. A stage with a model reserves `cpus_per_stage` threads and `gpus_per_stage` GPUs of a
    node, a share such as 0.5 to let two stages have one GPU; by default one GPU each where the
    cluster has any. With `engine.processes` a training, scoring or local answering stage takes that
    many times as much: of one node, or of several, with `processes_per_node` of the processes on
    each. A stage whose process or node dies is begun anew `retries` times at most, from
    its last checkpoint. `claims` says how processes keep from running a stage twice in one store:
    by the operating system's `lock`, or by a `lease` on a file, which is anybody's when its holder
    has not written for `lease_seconds`; `auto` tries whether locks reach all nodes.
    """

    backend: Literal["local", "ray"] = "local"
    address: Text | None = None
    cpus_per_stage: Count = 1
    gpus_per_stage: NonNegative | None = None
    processes_per_node: Count | None = None
    retries: CountOrZero = 3
    claims: Literal["auto", "lock", "lease"] = "auto"
    lease_seconds: Positive = 60.0

    @model_validator(mode="after")
    def _options_take_effect(self) -> ExecutionConfig:
        idle = [key for key in CLUSTER_KEYS if key in self.model_fields_set]
        if self.backend == "local" and idle:
            raise ValueError(f"{', '.join(idle)}: only for backend: ray; remove from local")
        if self.claims == "lock" and "lease_seconds" in self.model_fields_set:
            raise ValueError("lease_seconds: claims: lock has no leases; remove one of them")
        gpus = self.gpus_per_stage
        if gpus is not None and gpus > 1 and not float(gpus).is_integer():
            raise ValueError(f"gpus_per_stage: {gpus:g} is neither whole nor a share below 1")
        return self


def read_execution(value: Any) -> Any:
    """Turn a word into the section that it stands for."""
    return {"backend": value} if isinstance(value, str) else value
