"""How a run was made: commands, config, versions, machine, data; without secrets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from macpo.config import RunConfig, method_name
from macpo.dtype import Resolved
from macpo.invocation import hide_secrets
from macpo.report.data import Invocation, Provenance
from macpo.report.gather.finished import Finished
from macpo.run_directory import RunDir, RunPlan


def provenance(
    run: RunDir,
    config: RunConfig | None,
    resolved: Resolved | None,
    plan: RunPlan | None,
    done: Iterable[Finished],
    journal: Iterable[Mapping[str, Any]],
) -> Provenance:
    """Return how a run was made.

    Args:
        run: its folder.
        config: as it was resolved; None where this version cannot read it.
        resolved: what was decided once for the run; None where it cannot be read.
        plan: what it consists of; None of an older macpo's.
        done: finished stages.
        journal: its events.
    """
    environment: dict[str, str] = {}
    if resolved is not None:
        speeds = ", ".join(f"{k} {v:g}" for k, v in resolved.matmul_gflops.items())
        environment = {
            "dtype": resolved.dtype,
            "device": resolved.device,
            "machine": resolved.machine,
            "threads": str(resolved.threads or ""),
            "matrix products, GFLOP/s": speeds,
            "torch": resolved.torch,
            "transformers": resolved.transformers,
        }
    return Provenance(
        config=_text_of(run.config_file),
        resolved=_text_of(run.resolved_config_file),
        invocations=tuple(_invocations(journal)),
        environment={name: value for name, value in environment.items() if value},
        data=_data(config, plan, done),
        seed=None if config is None else config.seed,
        method="" if config is None else method_name(config.method),
    )


def _invocations(journal: Iterable[Mapping[str, Any]]) -> Iterator[Invocation]:
    for event in journal:
        if event["event"] == "invoked":
            yield Invocation(
                event["time"],
                event.get("command", ""),
                event.get("versions", {}),
                event.get("machine", {}),
                event.get("device", ""),
            )


def _data(
    config: RunConfig | None, plan: RunPlan | None, done: Iterable[Finished]
) -> dict[str, str]:
    """Return where the data is, its fingerprint, and the sizes of its splits."""
    facts = {}
    if config is not None:
        facts["source"] = hide_secrets(config.data.source)
    stage = next((s for s in plan.stages if s.kind == "data"), None) if plan else None
    if stage is not None:
        facts["fingerprint (content and how it is read)"] = str(stage.identity["content"])
    for found in done:
        if found.stage.kind == "data" and "pairs" in found.meta:
            sizes = (f"{name} {count:,}" for name, count in found.meta["pairs"].items())
            facts["pairs in each split"] = ", ".join(sizes)
    return facts


def _text_of(path: Path) -> str:
    """Return the text of a config file without secrets; empty when it is not there."""
    try:
        return hide_secrets(path.read_text(encoding="utf-8"))
    except OSError:
        return ""
