"""From a config to the stages of a whole run."""

from __future__ import annotations

from macpo.agents import Team
from macpo.config import RunConfig
from macpo.methods.method import Method
from macpo.program import Plan, Program


def build_plan(config: RunConfig, team: Team, data_digest: str) -> Plan:
    """Lay out a whole run of the method that the config names.

    Args:
        config: the run.
        team: its agents, as `macpo.agents.assemble_team` resolved them.
        data_digest: as `macpo.data.stages.content_digest` returns it.
    """
    method = config.method
    assert isinstance(method, Method)  # `register_method` takes no other
    program = Program(config, team, data_digest)
    method.lay_out(program)
    return program.plan
