"""Cards that a run may be planned for: their memory and how fast they are, each with its source.

8xH100-80GB        eight of a known card
2xcpu              two processes on this machine's CPU, which is measured
8x80/989/3350/450  eight of a card that is not in the table, by its numbers
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from macpo.errors import ConfigError

CPU = "cpu"
ASKED = re.compile(r"(?:(\d+)x)?(.+)", re.IGNORECASE)
NUMBERS = re.compile(r"(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)(?:/(\d+(?:\.\d+)?))?")
PCIE4 = 32.0
"""What a link over PCIe 4.0 x16 carries each way, in GB/s; taken where none is given."""


@dataclass(frozen=True, slots=True)
class Card:
    """A device.

    Attributes:
        name: as it is asked for.
        memory_gib: what vendors call GB of it, in GiB.
        tflops: matrix products in bfloat16 with float32 sums, dense, 10^12 operations a second.
        memory_gbps: reading its memory, GB/s.
        link_gbps: to another card of the same machine, each way, GB/s.
        source: where the numbers are from.
    """

    name: str
    memory_gib: float
    tflops: float
    memory_gbps: float
    link_gbps: float
    source: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """So many of one card, in one machine."""

    count: int
    card: Card

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.count}x{self.card.name}"

    @property
    def is_cpu(self) -> bool:
        """Whether it is this machine's CPU."""
        return self.card.name == CPU


CARDS = (
    Card("B200-180GB", 180, 2250, 7700, 900, "NVIDIA HGX B200 data sheet: per GPU of eight"),
    Card("H200-141GB", 141, 989, 4800, 450, "NVIDIA H200 data sheet, SXM"),
    Card("H100-80GB", 80, 989, 3350, 450, "NVIDIA H100 data sheet, SXM5"),
    Card("H100-PCIe-80GB", 80, 756, 2000, 64, "NVIDIA H100 data sheet, PCIe 5.0, without bridges"),
    Card("A100-80GB", 80, 312, 2039, 300, "NVIDIA A100 data sheet, SXM4"),
    Card("A100-40GB", 40, 312, 1555, 300, "NVIDIA A100 data sheet, SXM4"),
    Card("MI300X-192GB", 192, 1307, 5300, 448, "AMD Instinct MI300X data sheet"),
    Card("L40S-48GB", 48, 362, 864, PCIE4, "NVIDIA L40S data sheet"),
    Card("A10-24GB", 24, 125, 600, PCIE4, "NVIDIA A10 data sheet"),
    Card("L4-24GB", 24, 121, 300, PCIE4, "NVIDIA L4 data sheet"),
    Card("RTX5090-32GB", 32, 209, 1792, 64, "NVIDIA RTX Blackwell architecture paper"),
    Card("RTX4090-24GB", 24, 165, 1008, PCIE4, "NVIDIA Ada architecture paper, float32 sums"),
    Card("RTX3090-24GB", 24, 71, 936, PCIE4, "NVIDIA GA102 architecture paper, float32 sums"),
)
"""Known cards. Data sheets give products with sparsity for newer cards: half of that is here."""


def read_hardware(asked: str, cpu: Card | None = None) -> Hardware:
    """Return the hardware that is asked for.

    Args:
        asked: such as `8xH100-80GB`; a number before the card's name may be left out.
        cpu: this machine, if it was measured; shared by all processes that are asked for.

    Raises:
        ConfigError: no such card, or none of it.
    """
    match = ASKED.fullmatch(asked.strip())
    count, name = (int(match[1] or 1), match[2].lower()) if match else (1, "")
    if not count:
        raise ConfigError(f"--hardware {asked}: of nothing; ask for one device at least")
    if name == CPU and cpu is not None:
        share = cpu.memory_gib / count, cpu.tflops / count, cpu.memory_gbps / count
        return Hardware(count, Card(CPU, *share, cpu.link_gbps, cpu.source))
    for card in CARDS:
        if card.name.lower() == name:
            return Hardware(count, card)
    numbers = NUMBERS.fullmatch(name)
    if numbers is None:
        raise ConfigError(
            f"--hardware {asked}: no such card; known are {_listed(card.name for card in CARDS)} "
            f"and {CPU}; another one by its numbers: COUNTxGB/TFLOPS/GBPS (memory, dense bf16 "
            "TFLOP/s, GB/s of memory; then /GBPS between cards), such as 8x80/989/3350/450"
        )
    memory, tflops, speed, link = (float(n) if n else None for n in numbers.groups())
    if not (memory and tflops and speed):
        raise ConfigError(f"--hardware {asked}: memory, TFLOP/s and GB/s are above 0")
    return Hardware(count, Card(name, memory, tflops, speed, link or PCIE4, "as given"))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
