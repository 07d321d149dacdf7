"""Running a config: one function that a notebook and the command line call alike.

RUN/config.yaml     the config as it was last run
RUN/run.json        what was resolved once for the run: dtype, device, versions
RUN/store/          artifacts by content key; RUN/stages/ the same under readable names
RUN/journal.jsonl   what happened when
RUN/metrics.jsonl   one line per policy, round and metric
RUN/final/          the aligned policies
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from macpo.backends import find_backend
from macpo.config import RunConfig, method_name
from macpo.errors import ConfigError, StoreError
from macpo.evaluation.preference import METRICS_FILE
from macpo.records import read_jsonl
from macpo.store import Artifact, RunLock, Store, write_text_atomic

if TYPE_CHECKING:
    from macpo.agents import Team
    from macpo.execution.local import LocalExecutor, Observer
    from macpo.methods import Plan

CONFIG_FILE, RUN_FILE, METRICS, LOCK_FILE = "config.yaml", "run.json", "metrics.jsonl", "lock"
FINAL_FOLDER, STORE_FOLDER = "final", "store"


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One measurement of one policy after one round (0: after initialisation)."""

    policy: str
    round: int
    metric: str
    value: float

    def to_json(self) -> dict[str, Any]:
        """Return the line of metrics.jsonl."""
        return {
            "policy": self.policy,
            "round": self.round,
            "metric": self.metric,
            "value": self.value,
        }


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run: its folder, its metrics, and the folders of the aligned policies."""

    folder: Path
    metrics: list[MetricRow]
    final: dict[str, Path]


def run(config: RunConfig, folder: str | Path, observer: Observer | None = None) -> RunResult:
    """Run a config in a run directory; what was finished there before is not run again.

    Args:
        config: what to run.
        folder: the run directory, made if it is not there.
        observer: is told what happens; by default it is shown on stderr.

    Raises:
        MacpoError: something is wrong; see macpo.errors.
        KeyboardInterrupt: asked to stop; the same call goes on where it stopped.
    """
    if observer is None:
        from macpo.report.console import ConsoleObserver

        with ConsoleObserver() as console:
            return run(config, folder, console)
    from macpo.agents import assemble_team
    from macpo.data.stages import content_digest
    from macpo.execution.local import LocalExecutor
    from macpo.machine import tune_allocator
    from macpo.methods import build_plan

    folder = Path(folder)
    device = choose_device(config)
    caution = find_backend(config.generation.backend).caution
    if caution:
        observer.note(caution)
    with RunLock(folder / LOCK_FILE):
        resolved = _resolve_once(config, folder, device, observer)
        if device.type == "cpu":
            tune_allocator()
        write_text_atomic(folder / CONFIG_FILE, dump_config(config), durable=True)
        team = assemble_team(config, resolved["dtype"], fetch=True)
        plan = build_plan(config, team, content_digest(config.data, fetch=True))
        store = Store(folder / STORE_FOLDER)
        executor = LocalExecutor(folder, store, config.engine, device, observer)
        artifacts = executor.execute(plan)
        metrics = collect_metrics(plan, artifacts)
        lines = "".join(json.dumps(row.to_json()) + "\n" for row in metrics)
        write_text_atomic(folder / METRICS, lines, durable=True)
        final = _publish_all(config, team, plan, metrics, executor)
    return RunResult(folder, metrics, final)


def dump_config(config: RunConfig) -> str:
    """Return a config as YAML; what was left to its default is left out."""
    values = config.model_dump(mode="json", exclude_unset=True)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def choose_device(config: RunConfig) -> Any:
    """Return the `torch.device` of a run.

    Raises:
        ConfigError: the config asks for a device that is not here.
    """
    import torch

    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError("device: cuda, but torch finds no GPU; use device: cpu or auto")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def collect_metrics(plan: Plan, artifacts: dict[str, Artifact]) -> list[MetricRow]:
    """Gather the metrics of all evaluations and training stages that have artifacts."""
    rows = []
    for t, (evaluations, policies) in enumerate(zip(plan.evaluations, plan.policies, strict=True)):
        for name, stages in evaluations.items():
            if any(stage.key not in artifacts for stage in stages):
                continue
            found: dict[str, float] = {}
            for stage in stages:
                text = (artifacts[stage.key].path / METRICS_FILE).read_text(encoding="utf-8")
                found |= {k: v for k, v in json.loads(text).items() if k != "pairs"}
            trained = policies[name].weights
            if trained is not None and trained.key in artifacts:
                meta = artifacts[trained.key].meta
                found |= {f"train_{k}": meta[k] for k in ("loss", "margin") if k in meta}
            rows += [MetricRow(name, t, metric, value) for metric, value in sorted(found.items())]
    return rows


def read_metrics(folder: Path) -> list[MetricRow]:
    """Read a run's metrics.jsonl."""
    return [MetricRow(**row) for row in read_jsonl(folder / METRICS)]


def read_resolved(folder: Path) -> dict[str, Any] | None:
    """Read run.json, or return None if the run was never started.

    Raises:
        StoreError: it is there but is not what macpo writes.
    """
    path = folder / RUN_FILE
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete it to resolve anew") from error
    if not isinstance(value, dict) or value.get("dtype") not in ("float32", "bfloat16"):
        raise StoreError(f"{path} names no dtype; delete it to resolve anew")
    return value


def _resolve_once(
    config: RunConfig, folder: Path, device: Any, observer: Observer
) -> dict[str, Any]:
    """Decide the dtype when the run is made, by timing, and keep it from then on.

    Keys depend on it, so a resume on another kind of machine keeps it too.
    """
    before = read_resolved(folder)
    if before is not None and config.dtype in ("auto", before["dtype"]):
        if before["machine"] != platform.node():
            observer.note(
                f"dtype stays {before['dtype']}, as resolved on {before['machine']}; to change "
                "it, set dtype (everything is then run anew)"
            )
        return before
    from macpo.machine import fastest_dtype

    measured: dict[str, float] = {}
    dtype: str = config.dtype
    if dtype == "auto":
        dtype, measured = fastest_dtype(device)
        speeds = ", ".join(f"{name} {speed:.0f} GFLOP/s" for name, speed in measured.items())
        observer.note(f"dtype: {dtype} ({speeds} measured here)")
    import torch
    import transformers

    resolved = {
        "dtype": dtype,
        "device": str(device),
        "machine": platform.node(),
        "matmul_gflops": {name: round(speed, 1) for name, speed in measured.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    text = json.dumps(resolved, indent=1) + "\n"
    write_text_atomic(folder / RUN_FILE, text, durable=True)
    return resolved


def _publish_all(
    config: RunConfig, team: Team, plan: Plan, metrics: list[MetricRow], executor: LocalExecutor
) -> dict[str, Path]:
    """Write RUN/final/<agent> for everybody."""
    from macpo.publish import model_card, publish

    final = {}
    for agent in team.agents:
        last, policy = plan.final[agent.name]
        own = {
            row.metric: row.value
            for row in metrics
            if row.policy == agent.name and row.round == last
        }
        target = executor.folder / FINAL_FOLDER / agent.name
        weights = executor.artifacts[policy.weights_key].path
        caution = find_backend(config.generation.backend).caution
        card = model_card(policy, config.name, method_name(config.method), last, own, caution)
        publish(policy, weights, target, executor.policies, card)
        final[agent.name] = target
    return final
