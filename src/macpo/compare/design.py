"""Methods x settings x seeds, laid out as runs: every cell is one checked config."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from macpo.compare.config import CompareConfig, fault_list, find_base, read_compare
from macpo.compare.entries import Changes, MethodEntry
from macpo.config import MethodConfig, RunConfig, load_config
from macpo.config import method_name as name_of
from macpo.config.dumping import drop_unused
from macpo.config.faults import describe_fault
from macpo.config.loading import anchor_paths
from macpo.config.methods import method_class, read_method
from macpo.config.reading import apply_override
from macpo.evaluation.evaluator import chosen_evaluators
from macpo.metrics import Better, is_registered, registered
from macpo.seeds import canonical_json
from macpo.shipped import locate

TEACHERS = "teachers"
"""The policy under which results give the mean over all teachers."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison."""

    setting: str
    method: str
    seed: int
    config: RunConfig

    @property
    def place(self) -> tuple[str, str, int]:
        """Setting, method and seed: what tells it from the other cells."""
        return self.setting, self.method, self.seed

    def describe(self, *, with_setting: bool) -> str:
        """Name the cell for people: `noise/spin, seed 2`."""
        label = f"{self.setting}/{self.method}" if with_setting else self.method
        return f"{label}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Design:
    """A whole comparison.

    `cells` are in the order in which they run: all of a seed before the next, so that what is
    there early on can be compared. `metrics` are what tables show and which way is better, None
    for what is measured. `ceiling` is the method that knows ground truth, for the performance gap
    recovered; None without one.
    """

    name: str
    settings: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    against: str
    ceiling: str | None
    metrics: Mapping[str, Better] | None
    cells: tuple[Cell, ...]

    def folder_of(self, cell: Cell) -> Path:
        """Return where a cell runs, relative to the comparison's folder."""
        setting = (cell.setting,) if len(self.settings) > 1 else ()
        return Path("cells", *setting, cell.method, f"seed-{cell.seed}")

    def describe(self, cell: Cell) -> str:
        """Name a cell for people; its setting only where there are several."""
        return cell.describe(with_setting=len(self.settings) > 1)


def load_design(path: str | Path, overrides: Sequence[str] = ()) -> Design:
    """Read a compare file and lay out its cells.

    Args:
        path: the compare file, or `example:compare/NAME` for a shipped one.
        overrides: "section.key=value" items for every cell, as `--set` takes them.

    Raises:
        ConfigError: a file cannot be read or something is wrong; lists every fault.
    """
    path = locate(path)
    config = read_compare(path)
    base = load_config(find_base(config, path.parent))
    return lay_out(config, base, overrides, folder=path.parent, where=str(path))


def lay_out(
    config: CompareConfig,
    base: RunConfig,
    overrides: Sequence[str] = (),
    *,
    folder: Path | None = None,
    where: str = "comparison",
) -> Design:
    """Lay out and check the cells of a comparison.

    Args:
        config: the comparison.
        base: the run that every cell starts from.
        overrides: "section.key=value" items for every cell.
        folder: relative paths in `config` that exist there mean these; None for the working folder.
        where: the comparison's name in errors.

    Raises:
        ConfigError: something is wrong; lists every fault.
    """
    layout = _Layout(config, folder if folder is not None else Path.cwd())
    shared = layout.shared(base, overrides)
    runs = {pair: layout.config_of(shared, *pair) for pair in layout.pairs()}
    ceiling = layout.ceiling(runs)
    layout.refuse_equal_runs(runs)
    layout.refuse_unknown_metrics(runs)
    faults = layout.fault_lines()
    if faults:
        raise fault_list(where, faults)
    cells = tuple(
        Cell(setting, method, seed, run.model_copy(update={"seed": seed}))
        for seed in config.seeds
        for (setting, method), run in runs.items()
        if run is not None
    )
    return Design(
        name=config.name,
        settings=tuple(config.settings),
        methods=tuple(config.methods),
        seeds=config.seeds,
        against=config.against or next(iter(config.methods)),
        ceiling=ceiling,
        metrics=config.metrics,
        cells=cells,
    )


def with_dtype(design: Design, dtype: str) -> Design:
    """Return the design with `dtype: auto` decided, so that all cells can share stages."""
    cells = tuple(
        replace(cell, config=cell.config.model_copy(update={"dtype": dtype}))
        if cell.config.dtype == "auto"
        else cell
        for cell in design.cells
    )
    return replace(design, cells=cells)


class _Layout:
    """Builds the config of each cell, and gathers what is wrong with any."""

    def __init__(self, config: CompareConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._faults: dict[str, None] = {}  # a set that keeps its order
        self._in_cells: dict[str, list[str]] = {}

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Yield (setting, method) of all cells of a seed."""
        for setting in self.config.settings:
            for method, entry in self.config.methods.items():
                if entry.settings is None or setting in entry.settings:
                    yield setting, method

    def shared(self, base: RunConfig, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the plain values that every cell starts from."""
        raw = base.model_dump(mode="json", exclude_unset=True)
        anchor_paths(raw, Path.cwd())
        unused = [_unused(entry) for entry in self.config.methods.values()]
        for key in self.config.set:
            if all(_names_one_of(key, names) for names in unused):
                self._fault(f"set: {key} has no effect under any of the methods; remove it")
        raw = self._changed(raw, self.config.set, "set")
        for item in overrides:
            try:
                raw = apply_override(raw, item)
            except ValueError as error:
                self._fault(f"--set {item}: {error}")
        raw = copy.deepcopy(raw)  # YAML's anchors let two sections be one object
        anchor_paths(raw, Path.cwd())
        raw["name"] = self.config.name
        return raw

    def config_of(self, shared: dict[str, Any], setting: str, method: str) -> RunConfig | None:
        """Return the checked config of a cell, but for its seed; None when it has faults."""
        entry = self.config.methods[method]
        raw = copy.deepcopy(shared)
        drop_unused(raw, _unused(entry))
        raw["method"] = entry.method
        raw["seed"] = self.config.seeds[0]
        layers = {f"settings.{setting}": self.config.settings[setting]}
        layers[f"methods.{method}.set"] = entry.set
        for where, changes in layers.items():
            raw = self._changed(raw, self._with_effect(changes, where, method), where)
        run, lines = _checked(raw)
        for line in lines:
            self._in_cells.setdefault(line, []).append(self._label(setting, method))
        return run

    def ceiling(self, runs: Mapping[tuple[str, str], RunConfig | None]) -> str | None:
        """Return the method that knows ground truth: the one that was named, else the first."""
        found = [
            method
            for (_, method), run in runs.items()
            if run is not None and run.method.knows_ground_truth
        ]
        asked = self.config.ceiling
        if asked is None:
            return found[0] if found else None
        if asked not in found and all(run is not None for run in runs.values()):
            self._fault(f"ceiling: {asked} is not of method ceiling; name one that is")
        return asked

    def refuse_equal_runs(self, runs: Mapping[tuple[str, str], RunConfig | None]) -> None:
        """Refuse two cells that would be one and the same run under two labels."""
        known: dict[str, str] = {}
        for pair, run in runs.items():
            if run is None:
                continue
            content = canonical_json(run.model_dump(mode="json"))
            label = self._label(*pair)
            first = known.setdefault(content, label)
            if first != label:
                self._fault(
                    f"{first} and {label} are identical, the same run under two labels: change an "
                    "option of one or remove it (`settings:` of a method says where it takes part)"
                )

    def refuse_unknown_metrics(self, runs: Mapping[tuple[str, str], RunConfig | None]) -> None:
        """Refuse metrics that nobody measures, where all evaluators are macpo's own.

        Those of a plugin's may write metrics that it has not registered.
        """
        evaluators = [e for run in runs.values() if run is not None for e in chosen_evaluators(run)]
        if not all(type(e).__module__.startswith("macpo.") for e in evaluators):
            return
        known = [metric.name for metric in registered()]
        for name in self.config.metrics or ():
            if not is_registered(name):
                near = difflib.get_close_matches(name, known, n=1)
                meant = f"did you mean {near[0]}?" if near else "docs/compare.md lists them"
                self._fault(f"metrics: nobody measures {name[:100]}; {meant}")

    def fault_lines(self) -> list[str]:
        """Return all faults; one that several cells share only once, with the cells' labels."""
        lines = list(self._faults)
        everywhere = len(list(self.pairs()))
        widest_first = sorted(self._in_cells.items(), key=lambda item: -len(item[1]))
        for fault, labels in widest_first:
            where = "every cell" if len(labels) == everywhere else ", ".join(labels)
            lines.append(f"{where}: {fault}")
        return lines

    def _with_effect(self, changes: Changes, where: str, method: str) -> Changes:
        """Refuse changes without effect under a method, and return the others."""
        entry = self.config.methods[method]
        kind, unused = _class_of(entry), _unused(entry)
        for key in changes:
            if _names_one_of(key, unused):
                remedy = "remove it"
                if where.startswith("settings."):
                    remedy = f"or leave {method} out of it, by a `settings:` list of that method"
                self._fault(
                    f"{where}: {key} has no effect on {method} (method {name_of(kind)}); {remedy}"
                )
        return {k: v for k, v in changes.items() if not _names_one_of(k, unused)}

    def _changed(self, raw: dict[str, Any], changes: Changes, where: str) -> dict[str, Any]:
        """Return `raw` with changes made, and paths that they name anchored."""
        for key, value in changes.items():
            try:
                raw = apply_override(raw, f"{key}={yaml.safe_dump(value)}")
            except ValueError as error:
                self._fault(f"{where}: {key}: {error}")
        if changes:
            raw = copy.deepcopy(raw)
            anchor_paths(raw, self.folder)
        return raw

    def _fault(self, line: str) -> None:
        self._faults[line] = None

    def _label(self, setting: str, method: str) -> str:
        return f"{setting}/{method}" if len(self.config.settings) > 1 else method


def _class_of(entry: MethodEntry) -> type[MethodConfig]:
    """Return the options' class of a method; of an unknown one, which is refused later, any."""
    return method_class(entry.method) or MethodConfig


def _unused(entry: MethodEntry) -> frozenset[str]:
    """Return the keys of a config without effect under a method with its options.

    Options that are faulty are refused later, and leave what the method has no use for anyhow.
    """
    try:
        method = read_method(entry.method)
    except ValueError:
        return _class_of(entry).unused
    return method.unused | method.idle.keys()


def _checked(raw: Mapping[str, Any]) -> tuple[RunConfig | None, list[str]]:
    """Check the plain values of a cell; returns its config, or what is wrong with it."""
    try:
        run = RunConfig.model_validate(raw)
    except ValidationError as error:
        return None, [line for item in error.errors() for line in describe_fault(dict(item), raw)]
    if any(teacher.name == TEACHERS for teacher in run.teachers):
        return None, [f"teachers: {TEACHERS!r} is what results call their mean; rename that one"]
    return run, []


def _names_one_of(key: str, names: frozenset[str]) -> bool:
    """Tell whether a dotted key is one of `names`, or lies inside of one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
