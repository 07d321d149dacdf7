"""The section `execution`, and what is refused of it before anything starts."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from macpo.config import EngineConfig, load_config
from macpo.errors import ClusterError, ConfigError
from macpo.execution.choice import chosen_claims
from macpo.execution.cluster.ray import Needs, Node, open_cluster, refuse_impossible
from macpo.execution.local import LocalExecutor
from macpo.store import Store
from tests.runs import run_cli, write_config
from tests.test_execution import Copy
from tests.test_resume import Quiet


def test_a_word_is_the_backend(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), ["execution=ray"])

    assert config.execution.backend == "ray"
    assert load_config(write_config(tmp_path)).execution.backend == "local"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["execution=rya"], "execution.backend"),
        (["execution.adress=auto"], "did you mean 'address'"),
        (["execution.retries=2"], "retries: only for backend: ray"),
        (["execution.backend=ray", "execution.gpus_per_stage=1.5"], "neither whole nor a share"),
        (["execution.backend=ray", "execution.gpus_per_stage=0.5"], "device: cpu uses none"),
        (
            ["execution.claims=lock", "execution.lease_seconds=5"],
            "claims: lock has no leases",
        ),
        (["execution.processes_per_node=2"], "processes_per_node: only for backend: ray"),
        (
            ["execution.backend=ray", "execution.processes_per_node=2", "engine.processes=3"],
            "execution.processes_per_node is 2, and engine.processes 3; make that a multiple of it",
        ),
        (
            ["execution.backend=ray", "execution.processes_per_node=2"],
            "execution.processes_per_node is 2, and engine.processes not set; make that a multiple",
        ),
    ],
)
def test_faults_are_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(tmp_path), overrides)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    result = run_cli(
        ["run", write_config(tmp_path), "--out", tmp_path / "run", "--set", "execution=ray"]
    )

    assert result.code == 1
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("macpo: execution: ray needs Ray")
    assert "pip install 'macpo[ray]'" in last
    assert not (tmp_path / "run").exists()


def test_what_no_node_has_is_refused_with_what_there_is() -> None:
    nodes = [Node("1", "head", 4, 0), Node("2", "gpu", 8, 2)]
    refuse_impossible(Needs(8, 2), "round-1/student/train", nodes)

    with pytest.raises(ClusterError) as caught:
        refuse_impossible(Needs(6, 4), "round-1/student/train", nodes)

    assert str(caught.value).startswith(
        "round-1/student/train asks for 6 CPU, 4 GPU on one node, and no node of the cluster has "
        "that (head: 4 CPU, 0 GPU; gpu: 8 CPU, 2 GPU)"
    )


def test_nodes_that_one_stage_needs_together_are_counted() -> None:
    nodes = [Node("1", "head", 4, 0), Node("2", "gpu", 8, 2)]
    refuse_impossible(Needs(4, 0, nodes=2), "round-1/student/train", nodes)

    with pytest.raises(ClusterError) as caught:
        refuse_impossible(Needs(6, 0, nodes=2), "round-1/student/train", nodes)

    assert str(caught.value).startswith(
        "round-1/student/train asks for 6 CPU, 0 GPU on each of 2 nodes, and there are not as many "
        "(head: 4 CPU, 0 GPU; gpu: 8 CPU, 2 GPU); lower execution.cpus_per_stage"
    )


def test_claims_by_lease_serve_the_local_executor_too(tmp_path: Path) -> None:
    section = load_config(write_config(tmp_path), ["execution.claims=lease"]).execution
    store = Store(tmp_path / "store", chosen_claims(section))
    (tmp_path / "text").write_text("text")
    stage = Copy("first", tmp_path / "text")

    executor = LocalExecutor(tmp_path, store, EngineConfig(), torch.device("cpu"), Quiet())
    made = executor.execute([stage])

    assert (made[stage.key].path / "text").read_text() == "text"
    assert list((tmp_path / "store" / ".leases").iterdir())
    assert chosen_claims(load_config(write_config(tmp_path)).execution) is None


@pytest.mark.parametrize(("listens", "said"), [(True, "Ray was asked"), (False, "refused")])
def test_ray_is_asked_only_where_something_listens(
    listens: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would try for many minutes elsewhere."""

    def init(**options: object) -> None:
        raise ConnectionError("Ray was asked")

    util = SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")
    fake = SimpleNamespace(is_initialized=lambda: False, init=init, util=util)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        if not listens:
            server.close()
        overrides = ["execution.backend=ray", f"execution.address={address}"]
        section = load_config(write_config(tmp_path), overrides).execution
        expected = rf"no Ray cluster can be reached at {address} \(.*{said}"
        with pytest.raises(ClusterError, match=expected), open_cluster(section):
            pass
