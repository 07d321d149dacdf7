"""Who takes part: every agent with the run's training sections, and its own over them."""

from __future__ import annotations

from macpo.agents import assemble_team
from macpo.config import RunConfig


def test_an_agents_own_section_stands_over_the_runs_key_by_key() -> None:
    config = RunConfig.model_validate(
        {
            "name": "own",
            "rounds": 1,
            "data": {"source": "data.jsonl"},
            "student": {"model": "org/student", "dpo": {"beta": 0.5}},
            "teachers": [
                {
                    "name": "a",
                    "model": "org/a",
                    "sft": {"epochs": 7},
                    "negative_sft": {"epochs": 9},
                },
                {"name": "b", "model": "org/b"},
            ],
            "sft": {"epochs": 2, "learning_rate": 1e-3},
            "dpo": {"beta": 0.2, "gamma": 0.3},
        }
    )
    team = assemble_team(config, "float32", fetch=False)
    student, a, b = team.agents
    assert [agent.name for agent in team.agents] == ["student", "a", "b"]
    assert (student.dpo.beta, student.dpo.gamma) == (0.5, 0.3)
    assert (a.dpo, b.dpo) == (config.dpo, config.dpo)
    assert (a.sft.epochs, a.sft.learning_rate) == (7, 1e-3)
    assert (b.sft, student.sft) == (config.sft, config.sft)
    assert a.negative_sft.epochs == 9
    assert b.negative_sft == config.negative_sft
