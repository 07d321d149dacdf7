"""The one config tree: what a run's YAML may say, and reading it.

sections   the tree itself, with its defaults
values     the kinds of values in it
loading    from a file to a checked `RunConfig`
reading    YAML, and `--set` items
faults     what is said of what is wrong
"""

from macpo.config.loading import check_config, load_config
from macpo.config.sections import (
    CHAT_TEMPLATES,
    AgentConfig,
    DataConfig,
    DPOConfig,
    EngineConfig,
    EvaluationConfig,
    LimitsConfig,
    ModelConfig,
    NegativeSFTConfig,
    OptimizerConfig,
    PositivesConfig,
    RunConfig,
    SamplingConfig,
    Section,
    SFTConfig,
    SplitsConfig,
    TeacherConfig,
    TuningConfig,
)
from macpo.config.values import parse_layers

__all__ = [
    "CHAT_TEMPLATES",
    "AgentConfig",
    "DPOConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "LimitsConfig",
    "ModelConfig",
    "NegativeSFTConfig",
    "OptimizerConfig",
    "PositivesConfig",
    "RunConfig",
    "SFTConfig",
    "SamplingConfig",
    "Section",
    "SplitsConfig",
    "TeacherConfig",
    "TuningConfig",
    "check_config",
    "load_config",
    "parse_layers",
]
