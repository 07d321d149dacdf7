"""MACPO, the methods that it is compared with, and its ablations: each a short program.

| module | method | paper |
|---|---|---|
| macpo | MACPO and its ablations | arXiv 2410.07672 |
| naive_sft | SFT on weak labels | arXiv 2312.09390 |
| confident_loss | SFT that may overrule weak labels | arXiv 2312.09390 |
| ceiling | the student on ground truth | |
| spin | self-play fine-tuning | arXiv 2401.01335 |
| self_rewarding | the student judges its own answers | arXiv 2401.10020 |
| rlaif | the teachers compare the student's answers | arXiv 2309.00267 |
| rlcd | pairs from contrasting prompts | arXiv 2307.12950 |

`program` holds the calls that they are written with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from macpo.agents import Team
from macpo.config import (
    CeilingConfig,
    ConfidentConfig,
    MACPOConfig,
    NaiveSFTConfig,
    RLAIFConfig,
    RLCDConfig,
    RunConfig,
    SelfRewardingConfig,
    SPINConfig,
)
from macpo.methods.ceiling import plan_ceiling
from macpo.methods.confident_loss import plan_confident_loss
from macpo.methods.macpo import plan_macpo
from macpo.methods.naive_sft import plan_naive_sft
from macpo.methods.program import Plan, Program
from macpo.methods.rlaif import plan_rlaif
from macpo.methods.rlcd import plan_rlcd
from macpo.methods.self_rewarding import plan_self_rewarding
from macpo.methods.spin import plan_spin

__all__ = ["Plan", "Program", "build_plan"]

_PROGRAMS: dict[type, Callable[[Program, Any], None]] = {
    MACPOConfig: plan_macpo,
    NaiveSFTConfig: plan_naive_sft,
    CeilingConfig: plan_ceiling,
    ConfidentConfig: plan_confident_loss,
    SPINConfig: plan_spin,
    SelfRewardingConfig: plan_self_rewarding,
    RLAIFConfig: plan_rlaif,
    RLCDConfig: plan_rlcd,
}


def build_plan(config: RunConfig, team: Team, data_digest: str) -> Plan:
    """Lay out a whole run of the method that the config names.

    Args:
        config: the run.
        team: its agents, as `macpo.agents.assemble_team` resolved them.
        data_digest: as `macpo.data.stages.content_digest` returns it.
    """
    program = Program(config, team, data_digest)
    _PROGRAMS[type(config.method)](program, config.method)
    return program.plan
