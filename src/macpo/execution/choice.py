"""Which executor a config asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from macpo.config import ExecutionConfig, RunConfig
from macpo.execution.protocol import ExecutorFactory
from macpo.ranks import Ranks
from macpo.store import Claims, LeaseClaims


@contextlib.contextmanager
def chosen_executor(config: RunConfig, ranks: Ranks) -> Iterator[ExecutorFactory]:
    """Yield what makes the executor of a config; a cluster is connected to while the block runs.

    Args:
        config: the run.
        ranks: who runs stages together under the local one.

    Raises:
        ConfigError: what it needs is not installed.
        ClusterError: there is no such cluster.
    """
    if config.execution.backend == "local":
        from macpo.execution.local import LocalExecutor

        yield partial(LocalExecutor, ranks=ranks)
        return
    from macpo.execution.cluster.executor import ClusterExecutor
    from macpo.execution.cluster.ray import open_cluster

    section = config.execution
    with open_cluster(section) as cluster:
        yield partial(ClusterExecutor, cluster=cluster, config=section, asked=config.device)


def chosen_claims(section: ExecutionConfig) -> Claims | None:
    """Return how the processes of one machine claim stages; None for the store's own way."""
    return LeaseClaims(section.lease_seconds) if section.claims == "lease" else None
