"""The vLLM backend: an engine per base in a process of its own, adapters by their content."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.config import EngineConfig
from macpo.config.serving import VllmConfig
from macpo.errors import ConfigError, ModelError
from macpo.generation.protocol import Speaker
from macpo.generation.served.adapters import allowed_rank, hand_over_adapter, hand_over_weights
from macpo.generation.served.engine import Adapter, Launch, SupervisedEngine, plain_environment
from macpo.generation.served.generator import ServedGenerator
from macpo.policies import expected_bytes

if TYPE_CHECKING:
    from macpo.policies import PolicyPool

OLDEST = "0.32"
"""The oldest vLLM that was tried."""
PROBE_SECONDS = 120.0
PROBE = """
import importlib.util, json, sys
from importlib.metadata import packages_distributions, version
names = packages_distributions().get("vllm", []) if importlib.util.find_spec("vllm") else []
print(json.dumps([version(names[0]) if names else None, sys.version.split()[0]]))
"""
GIB = 1 << 30
PROCESS_BYTES = 2 * GIB
"""What vLLM's process takes of the machine's memory beside weights, keys and values."""


def find_version(section: VllmConfig) -> str:
    """Return the version of the vLLM that a config's interpreter has.

    Raises:
        ConfigError: there is no such interpreter, it has no vLLM, or too old a one.
    """
    return _version_in(section.python)


@functools.cache
def _version_in(python: str) -> str:
    """See `find_version`; vLLM itself is not imported, which takes many seconds."""
    from packaging.version import InvalidVersion, Version

    path = shutil.which(python)
    if path is None:
        raise ConfigError(
            f"generation.python: {python} is no program that can be run; name the Python of an "
            "environment with vLLM, such as .venv-vllm/bin/python (docs/vllm.md says how)"
        )
    try:
        probed = subprocess.run(
            [path, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env=plain_environment(),
            stdin=subprocess.DEVNULL,
            check=True,
        )
        found, its_python = json.loads(probed.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        said = str(getattr(error, "stderr", None) or error).strip().splitlines() or [""]
        raise ConfigError(
            f"generation.python: {python} does not work as a Python interpreter "
            f"({said[-1][:200]}); name the one of an environment with vLLM"
        ) from error
    if found is None:
        raise ConfigError(
            f"generation.python: {python} (Python {its_python}) has no vLLM; install it there, "
            f"`{python} -m pip install vllm`, or take generation.backend: local"
        )
    try:
        too_old = Version(found) < Version(OLDEST)
    except InvalidVersion:  # a build of somebody's own
        too_old = False
    if too_old:
        raise ConfigError(
            f"generation.python: {python} has vLLM {found}, and {OLDEST} is the oldest that was "
            f"tried; update it there, `{python} -m pip install -U vllm`"
        )
    return str(found)


def vllm_generator(
    speaker: Speaker,
    policies: PolicyPool,
    engine: EngineConfig,
    progress: Callable[[int], None],
) -> ServedGenerator:
    """Let vLLM answer for a policy: a `macpo.generation.protocol.GeneratorFactory`.

    The policy is loaded here as well: its adapter is written for vLLM, and the canary needs it.

    Raises:
        ModelError: the adapter's rank is above what vLLM allows.
    """
    section, policy = speaker.section, speaker.policy
    assert isinstance(section, VllmConfig)  # the backend's own, as the config was read
    agent = policy.agent
    lora = agent.tuning.kind == "lora"
    rank = allowed_rank(agent.tuning.rank) if lora else 0
    if rank is None:
        raise ModelError(
            f"{agent.name}: tuning.rank is {agent.tuning.rank}, more than vLLM serves; lower it to "
            "512, or take generation.backend: local"
        )
    loaded = policies.load(policy)
    whole = "" if lora else policy.weights_key
    kv_bytes = int(engine.decode_memory_gib * GIB)

    def seat(length: int) -> tuple[SupervisedEngine, Adapter | None]:
        def start() -> SupervisedEngine:
            folder = Path(tempfile.mkdtemp(prefix="macpo-served-"))
            model = hand_over_weights(loaded, policy, folder) if whole else agent.base.location
            launch = Launch(
                str(model),
                agent.dtype,
                length,
                rank,
                kv_bytes,
                section.tensor_parallel,
                agent.base.trust_remote_code,
            )
            python = shutil.which(section.python) or section.python
            return SupervisedEngine(launch, folder, python, section.deadline_s, agent.base.name)

        key = [agent.base.location, whole, agent.dtype, length, rank, kv_bytes]
        key += [section.model_dump_json()]
        size = expected_bytes(agent) + kv_bytes + PROCESS_BYTES
        found = policies.companion(repr(key), size, start)
        found.begin_stage()
        adapts = lora and policy.weights is not None
        return found, hand_over_adapter(loaded, policy, found.folder) if adapts else None

    return ServedGenerator(speaker, loaded, seat, engine.pack_tokens, progress)
