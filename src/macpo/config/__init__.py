"""The one config tree: what a run's YAML may say, and reading it.

sections   the tree itself, with its defaults
agents     the student's and a teacher's section: base model, which weights train
data       preference data and its splits
training   SFT and DPO: optimizers, losses, where a round starts
methods    the section of the method, which is looked up by name
evaluators likewise for the list of evaluators
execution  where stages run
generation who answers: the section, looked up by its backend
serving    keys of the backends that answer in another process
values     the kinds of values in it
loading    from a file to a checked `RunConfig`
dumping    and back
reading    YAML, and `--set` items
faults     what is said of what is wrong
"""

from macpo.config.agents import (
    ALL_LINEAR,
    AUTO,
    CHAT_TEMPLATES,
    PAPER_TARGETS,
    AgentConfig,
    ModelConfig,
    TeacherConfig,
    TuningConfig,
)
from macpo.config.base import Section
from macpo.config.data import ColumnsConfig, DataConfig, SplitsConfig
from macpo.config.execution import ExecutionConfig
from macpo.config.generation import DECODED_HERE, GenerationConfig
from macpo.config.loading import check_config, load_config
from macpo.config.methods import MethodConfig, method_name
from macpo.config.sections import (
    EngineConfig,
    EvaluationConfig,
    LimitsConfig,
    RunConfig,
    SamplingConfig,
)
from macpo.config.training import DPOConfig, NegativeSFTConfig, OptimizerConfig, SFTConfig
from macpo.config.values import parse_layers

__all__ = [
    "ALL_LINEAR",
    "AUTO",
    "CHAT_TEMPLATES",
    "DECODED_HERE",
    "PAPER_TARGETS",
    "AgentConfig",
    "ColumnsConfig",
    "DPOConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "ExecutionConfig",
    "GenerationConfig",
    "LimitsConfig",
    "MethodConfig",
    "ModelConfig",
    "NegativeSFTConfig",
    "OptimizerConfig",
    "RunConfig",
    "SFTConfig",
    "SamplingConfig",
    "Section",
    "SplitsConfig",
    "TeacherConfig",
    "TuningConfig",
    "check_config",
    "load_config",
    "method_name",
    "parse_layers",
]
