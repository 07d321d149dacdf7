"""Write the table of the README: which model trains on which card, and how long the paper takes.

    python docs/figures/plan_table.py --write

Everything is what `macpo plan` says, by arithmetic on shapes: no weights, no data, no network. A
test compares the README with it.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from pathlib import Path

from macpo.agents import Agent
from macpo.config import (
    AUTO,
    DPOConfig,
    EngineConfig,
    LimitsConfig,
    NegativeSFTConfig,
    RunConfig,
    SFTConfig,
    TuningConfig,
    load_config,
)
from macpo.models.loading import parameter_count, weight_bytes
from macpo.models.quantising import NF4
from macpo.models.sources import ResolvedModel
from macpo.planning import PlanReport, plan
from macpo.planning.cards import read_hardware
from macpo.planning.costs import model_shape
from macpo.planning.memory import Model
from macpo.planning.placement import place, written

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
START, END = "<!-- plan table: make plan-table -->\n", "<!-- end of plan table -->\n"
MODELS = {
    "Llama-3.2-1B": "meta-llama/Llama-3.2-1B",
    "Qwen3-8B": "Qwen/Qwen3-8B",
    "Qwen3-32B": "Qwen/Qwen3-32B",
    "Llama-2-70B": "meta-llama/Llama-2-70b-hf",
}
TUNINGS = {
    "8, q and v": TuningConfig(rank=8, targets=(AUTO,)),
    "64, all linear": TuningConfig(rank=64, targets=("all-linear",)),
}
LENGTHS = (1024, 4096)
"""Prompt and answer together, half each, as the paper's 1,024."""
HARDWARE = ("1xRTX4090-24GB", "1xA100-80GB", "4xL40S-48GB", "8xH100-80GB", "8xH200-141GB")
PAPER, PAPER_HARDWARE = "example:paper-hh-helpful", "8xH100-80GB"


@functools.cache
def paper_config(*changes: str) -> RunConfig:
    """Return the config of the paper's setting, or one that differs in some keys."""
    return load_config(PAPER, list(changes))


@functools.cache
def described(name: str, rank: str) -> Model:
    """Return what a model costs by its shape."""
    base = ResolvedModel(name, name, None, None, local=False, hub_name=name)
    rest = (LimitsConfig(), SFTConfig(), NegativeSFTConfig(), DPOConfig())
    agent = Agent("student", base, None, "bfloat16", TUNINGS[rank], *rest)
    counted = parameter_count(base)
    assert counted is not None
    return Model(counted.count, "bfloat16", "lora", model_shape(agent))


@functools.cache
def in_four_bits(name: str, rank: str) -> Model:
    """Return the same with `quantize: nf4`."""
    base = ResolvedModel(name, name, None, None, local=False, hub_name=name, quantize=NF4)
    stored = weight_bytes(base, "bfloat16")
    return replace(described(name, rank), stored=stored, made=True)


def cell(name: str, rank: str, length: int, hardware: str) -> str:
    """Return what the table says of one model on one machine."""
    longest = length // 2 * 3  # a prompt and two answers
    in_nf4 = paper_config(f"student.model.quantize={NF4}")
    for model, config, whole in (
        (described(name, rank), paper_config(), "yes"),
        (in_four_bits(name, rank), in_nf4, "4-bit"),
    ):
        for again in (False, True):
            engine = EngineConfig(checkpoint_activations=again)
            found = place(model, read_hardware(hardware), engine, longest, config).training
            if found.fits:
                return (whole if found.shards == 1 else "divided") + (", c" if again else "")
    return "no"


def table() -> str:
    """Return the rows."""
    lines = [
        "| model | rank, layers | tokens | " + " | ".join(HARDWARE) + " |",
        "|---|---|---|" + "---|" * len(HARDWARE),
    ]
    for shown, name in MODELS.items():
        for rank in TUNINGS:
            for length in LENGTHS:
                cells = (cell(name, rank, length, hardware) for hardware in HARDWARE)
                lines.append(f"| {shown} | {rank} | {length:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def paper(report: PlanReport) -> str:
    """Return a sentence on the paper's setting, planned for `PAPER_HARDWARE`."""
    assert report.seconds is not None
    placed = [agent.placement for agent in report.agents if agent.placement is not None]
    assert all(p.training.fits and p.answering.fits for p in placed)
    layout = "; ".join(
        f"{section}: {{{', '.join(f'{key}: {written(value)}' for key, value in values.items())}}}"
        for section, values in report.layout.keys.items()
    )
    return (
        "The paper's setting (70B student, three teachers of 7 and 8B, 5,000 prompts, three "
        f"rounds) takes at most {report.seconds / 3600:.1f} hours on {PAPER_HARDWARE}, were every "
        f"answer as long as it may be, under `{layout}`."
    )


def section() -> str:
    """Return all that stands between the marks."""
    report = plan(paper_config(), hardware=PAPER_HARDWARE)
    return f"{START}{table()}\n\n{paper(report)}\n{END}"


def main() -> None:
    """Print the section, or put it into the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    if not parser.parse_args().write:
        print(section())
        return
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    README.write_text(before + section() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
