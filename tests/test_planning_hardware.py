"""Planning for hardware that is not here: cards, layouts, times, money."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from macpo.config import EngineConfig, load_config
from macpo.errors import ConfigError
from macpo.planning import PlanReport, plan
from macpo.planning.cards import CARDS, Card, Hardware, read_hardware
from macpo.planning.costs import GIB, ModelShape
from macpo.planning.layouts import SERVED, Member
from macpo.planning.memory import Model
from macpo.planning.placement import Placement, place, place_run
from macpo.planning.times import Asked, loading_seconds, stage_seconds
from macpo.ranks.launch import check_processes
from macpo.report.plan import render_plan
from macpo.work import Work
from tests.runs import SOURCES, write_config

PAPER = SOURCES.parent / "examples" / "paper-hh-helpful.yaml"
CARD = Card("test-80GB", 80, 1000, 2000, 100, "made up")
LLAMA_70B = ModelShape(80, 8192, 28672, 64, 2048, 32000, 68 * 10**9, 855 * 10**6, 16 * 10**6)
LLAMA_7B = ModelShape(32, 4096, 11008, 32, 8192, 32000, 6.5 * 10**9, 202 * 10**6, 4 * 10**6)
BIG = Model(69 * 10**9, "bfloat16", "lora", LLAMA_70B)
IN_NF4 = Model(69 * 10**9, "bfloat16", "lora", LLAMA_70B, stored=36 * 10**9, made=True)
SMALL = Model(67 * 10**8, "bfloat16", "lora", LLAMA_7B)


def show(report: PlanReport) -> str:
    import io

    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=160).print(render_plan(report))
    return " ".join(file.getvalue().split())


@pytest.fixture(scope="module")
def paper() -> PlanReport:
    return plan(load_config(PAPER), hardware="8xH100-80GB", price=2.5)


def test_cards_are_asked_for_by_number_and_name() -> None:
    assert read_hardware("8xH100-80GB") == Hardware(8, CARDS[2])
    assert read_hardware("a100-40gb").card.name == "A100-40GB"
    assert read_hardware("a100-40gb").count == 1
    given = read_hardware("2x48/181/864").card
    assert (given.memory_gib, given.tflops, given.memory_gbps) == (48, 181, 864)
    assert read_hardware("4x80/989/3350/450").card.link_gbps == 450
    assert len({card.name for card in CARDS}) == len(CARDS)
    assert all(card.source for card in CARDS)


def test_processes_on_one_cpu_share_it() -> None:
    here = Card("cpu", 16, 0.2, 0, 0, "measured")
    two = read_hardware("2xcpu", here)
    assert (two.count, two.card.memory_gib, two.card.tflops) == (2, 8, 0.1)
    assert two.is_cpu


def test_a_card_that_nobody_knows_is_one_line_with_those_that_are_and_how_to_give_numbers() -> None:
    with pytest.raises(ConfigError) as error:
        read_hardware("8xH900")
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith("--hardware 8xH900: no such card; known are B200-180GB, ")
    assert "COUNTxGB/TFLOPS/GBPS" in said
    with pytest.raises(ConfigError, match="at least"):
        read_hardware("0xH100-80GB")
    with pytest.raises(ConfigError, match="above 0"):
        read_hardware("1x0/1/1")


def alone(model: Model, count: int, engine: EngineConfig, backend: str = "local") -> Placement:
    """Place a model that is the only one of its run."""
    generation = ["generation.backend=vllm", "generation.python=python"]
    config = load_config(PAPER, generation if backend == "vllm" else [])
    return place(model, Hardware(count, CARD), engine, 1536, config)


def test_what_fits_is_whole_on_every_device_and_what_does_not_is_divided() -> None:
    small = alone(SMALL, 8, EngineConfig())
    assert (small.training.way, small.training.shards, small.training.replicas) == ("whole", 1, 8)
    assert (small.answering.way, small.answering.replicas) == ("local", 8)
    assert small.training.fits
    assert not small.answering.remedy

    big = alone(BIG, 8, EngineConfig())
    assert (big.training.way, big.training.shards, big.training.fits) == ("FSDP", 8, True)
    assert (big.answering.way, big.answering.shards, big.answering.replicas) == (SERVED, 8, 1)


def test_what_does_not_fit_is_told_with_the_least_change_that_would_do() -> None:
    kept = EngineConfig(checkpoint_activations=False)  # said, so not for the plan to change
    four = alone(BIG, 4, kept, "vllm").training
    assert not four.fits
    assert four.remedy == "engine.checkpoint_activations: true"
    assert alone(BIG, 4, EngineConfig(), "vllm").training.fits

    one = alone(BIG, 1, kept, "vllm")
    assert not one.training.fits
    assert one.training.remedy == "2xtest-80GB, with engine.checkpoint_activations: true"
    assert not one.answering.fits
    assert one.answering.remedy == "4xtest-80GB"
    huge = Model(10**14, "bfloat16", "lora", LLAMA_70B)
    lost = alone(huge, 1, EngineConfig(), "vllm").training
    assert lost.remedy == "no number of such devices holds it"


def test_all_agents_of_a_run_have_one_layout(paper: PlanReport) -> None:
    places = [agent.placement for agent in paper.agents if agent.placement is not None]
    assert len(places) == 4
    assert {(p.training.way, p.training.shards) for p in places} == {("FSDP", 8)}
    assert {(p.answering.way, p.answering.shards) for p in places} == {(SERVED, 8)}
    for found in places:  # slices of all four bases stay while vLLM answers
        assert found.answering.parts is not None
        assert found.answering.parts.others == pytest.approx(90.99e9 * 2 / 8 / GIB, rel=0.01)


def test_keys_that_a_plan_names_for_the_papers_example_are_a_config_that_a_run_takes(
    paper: PlanReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [line.replace(": ", "=", 1) for line in paper.layout.missing]
    assert "engine.sharding=fsdp" in named
    assert "generation.backend=vllm" in named

    config = load_config(PAPER, named)

    assert config.faults() == []
    assert check_processes(config.engine.processes, {}) is None
    assert (config.engine.processes, config.engine.sharding) == (8, "fsdp")
    assert config.generation.backend_of("llama-2-7b").name == "vllm"
    monkeypatch.setattr("macpo.generation.served.vllm._version_in", lambda python: "0.33.0")
    again = plan(config, hardware="8xH100-80GB")
    assert again.layout.missing == ()
    assert again.layout.keys == paper.layout.keys
    assert again.seconds == paper.seconds
    with pytest.raises(ConfigError, match="cannot answer"):  # what the layout would be refused for
        load_config(PAPER, ["engine.processes=8", "engine.sharding=fsdp"])


def keys_with(report: PlanReport) -> list[str]:
    """Return the keys by which bases in 4 bits are proposed, as `--set` takes them."""
    return [line.replace(": ", "=", 1) for line in report.layout.in_four_bits]


@pytest.fixture
def _nf4_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macpo.preflight.refuse_unmade", lambda name: None)


@pytest.mark.usefixtures("_nf4_can_be_made")
def test_a_70b_on_one_card_is_proposed_in_four_bits_with_keys_that_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nothing = plan(load_config(PAPER), hardware="1xH100-80GB")
    keys = keys_with(nothing)
    assert keys == ["student.model.quantize=nf4", "engine.checkpoint_activations=true"]
    assert (
        "in 4 bits (QLoRA) all of it fits 1xH100-80GB; set student.model.quantize: nf4, engine."
        in show(nothing)
    )

    loaded: list[float] = []
    monkeypatch.setattr(
        "macpo.planning.stages.loading_seconds", lambda uses: loaded.extend(u[2] for u in uses) or 0
    )
    found = plan(load_config(PAPER, keys), hardware="1xH100-80GB")

    assert max(loaded) == pytest.approx(69e9 * 2 / GIB, rel=0.01)  # files of ordinary weights
    places = [agent.placement for agent in found.agents if agent.placement is not None]
    assert all(p.training.fits and p.answering.fits for p in places)
    assert found.layout.missing == ()
    assert found.layout.in_four_bits == ()
    assert "4 bits" not in show(found)


@pytest.mark.usefixtures("_nf4_can_be_made")
def test_an_8b_on_a_small_card_is_proposed_in_four_bits_where_texts_are_long(
    tmp_path: Path,
) -> None:
    path = write_config(
        tmp_path,
        student={"model": {"source": "meta-llama/Llama-3.1-8B"}},
        limits={"prompt_tokens": 4096, "response_tokens": 4096},
        tuning={"rank": 64, "targets": "all-linear"},
        dtype="bfloat16",
    )
    nothing = plan(load_config(path), hardware="1xRTX4090-24GB")
    assert nothing.agents[0].placement is not None
    assert nothing.agents[0].placement.training.fits is False
    keys = keys_with(nothing)
    assert "student.model.quantize=nf4" in keys
    assert not any(key.startswith("teachers") for key in keys)  # the largest alone will do

    found = plan(load_config(path, keys), hardware="1xRTX4090-24GB").agents[0].placement

    assert found is not None
    assert found.training.fits
    assert found.answering.fits


def test_four_bits_are_proposed_beside_divided_bases(paper: PlanReport) -> None:
    assert keys_with(paper)[:2] == ["student.model.quantize=nf4", "engine.processes=8"]
    assert "in 4 bits (QLoRA) no base need be divided; set student.model.quantize: nf4, " in show(
        paper
    )


@pytest.mark.parametrize(
    ("changes", "proposed"),
    [
        ([], True),
        (["tuning={kind: full}"], False),
        (["generation={backend: vllm, python: p}"], False),
        (
            ["engine.sharding=fsdp", "engine.processes=2", "generation={backend: vllm, python: p}"],
            False,
        ),
    ],
    ids=["LoRA", "full", "vLLM", "divided"],
)
def test_four_bits_are_proposed_only_where_a_run_would_take_them(
    changes: list[str], proposed: bool
) -> None:
    student = Member("student", BIG, 1536, "", in_nf4=IN_NF4)
    layout, placed = place_run(load_config(PAPER, changes), Hardware(1, CARD), [student])
    assert placed["student"].training.fits is False
    assert bool(layout.in_four_bits) is proposed


def test_what_is_quantised_while_it_loads_is_read_whole_from_disk() -> None:
    assert IN_NF4.read_gib == BIG.read_gib == BIG.gib == pytest.approx(138e9 / GIB)
    assert IN_NF4.gib == pytest.approx(36e9 / GIB)
    stored_so = Model(69 * 10**9, "bfloat16", "lora", LLAMA_70B, stored=36 * 10**9)
    assert stored_so.read_gib == stored_so.gib


@pytest.mark.parametrize(
    ("changes", "why", "change"),
    [
        (["tuning={kind: full}"], "tuning.kind is full", "tuning.kind: lora"),
        (["method={name: macpo, negatives: decoding}"], "cannot push answers", "another method"),
        (["execution=ray"], "no effect on a cluster's stages", "execution: local"),
    ],
)
def test_what_the_engine_refuses_is_no_layout(changes: list[str], why: str, change: str) -> None:
    report = plan(load_config(PAPER, changes), hardware="8xH100-80GB")

    assert "sharding" not in report.layout.keys["engine"]
    student = report.agents[0].placement
    assert student is not None
    assert student.training.fits is False
    assert student.training.remedy.startswith(change)
    said = show(report)
    assert f"to divide the base is refused ({report.layout.refused})" in said
    assert why in report.layout.refused


def test_a_server_that_does_not_answer_for_all_does_not_go_with_divided_bases() -> None:
    asked = ["engine.processes=8", "engine.sharding=fsdp", "generation.backend=server"]
    with pytest.raises(ConfigError, match=r"name in generation.urls: llama-2-7b, mistral-7b"):
        load_config(PAPER, [*asked, "generation.urls={student: 'http://127.0.0.1:1/v1'}"])


def seconds(
    work: Work,
    model: Model = SMALL,
    count: int = 1,
    backend: str = "vllm",
    utilisation: float | None = 0.5,
) -> float:
    hardware = Hardware(count, CARD)
    placement = alone(model, count, EngineConfig(), backend)
    found = stage_seconds(
        Asked(work, prompt=100),
        model,
        placement,
        hardware,
        pack_tokens=2048,
        utilisation=utilisation,
    )
    assert found is not None
    return found


def test_time_of_training_is_its_operations_at_the_utilisation() -> None:
    # 4 x 6.5e9 x 1e6 body and 4 x 4096 x 32000 x 2e5 head, at 500 TFLOP/s
    work = Work(trained=1e6, learned=2e5)
    alone = seconds(work)
    assert alone == pytest.approx((4 * 6.5e15 + 4 * 4096 * 32000 * 2e5) / 500e12)
    assert seconds(work, count=8) == pytest.approx(alone / 8)
    assert seconds(work, utilisation=None) == pytest.approx(alone * 0.5 / 0.4)


def test_time_of_a_divided_base_over_slow_links_is_that_of_gathering_it() -> None:
    # each of 8 devices gathers 7/8 of 138 GB thrice for each of 1e6 / 8 / 2048 packs, at 70 GB/s
    work = Work(trained=1e6)
    gathering = 3 * 1e6 / 8 / 2048 * 138e9 * 7 / 8 / 70e9
    products = 4 * 68e9 * 1e6 / (8 * 500e12)
    assert gathering > products
    assert seconds(work, BIG, 8) == pytest.approx(gathering)


def test_time_of_answers_is_that_of_reading_weights_and_cache_for_every_step() -> None:
    # 64 rows; a step reads 13.4 GB, and 64 x 140 tokens x 32 layers x 8,192 numbers x 2 bytes
    work = Work(written=64 * 80, answers=64)
    read = 13.4e9 + 64 * 140 * 32 * 8192 * 2
    assert seconds(work) == pytest.approx(80 * read / (2000e9 * 0.6))
    assert seconds(work, count=2) < seconds(work)
    assert seconds(work, backend="local") > seconds(work)


def test_quantised_weights_are_turned_back_for_every_pass_and_step() -> None:
    # 276 GB out of and into memory at 1.2 TB/s: twice a pack of 2,048 that trains, once one read
    once = 2 * 138e9 / (2000e9 * 0.6)
    products = 4 * 68e9 * 1e6 / 500e12
    trained = seconds(Work(trained=1e6), IN_NF4, backend="local")
    assert trained == pytest.approx(products + 2 * 1e6 / 2048 * once)
    read = seconds(Work(read=1e6), IN_NF4, backend="local")
    assert read == pytest.approx(products / 2 + 1e6 / 2048 * once)
    # a step reads 36 GB and the cache, too; by vLLM it does not turn back
    step = 36e9 + 140 * 80 * 2048 * 2
    written = seconds(Work(written=80, answers=1), IN_NF4, backend="local")
    assert written == pytest.approx(80 * (step / (2000e9 * 0.6) + once))


def test_bases_are_loaded_when_another_one_was_used_or_in_another_way() -> None:
    uses = [("a", "whole", 4.0), ("a", "whole", 4.0), ("a", SERVED, 4.0), ("b", "whole", 2.0)]
    assert loading_seconds(uses) == (4 + 4 + 2) / 2 + 60
    assert loading_seconds([]) == 0


def test_papers_setting_fits_eight_cards_and_says_how_long_it_takes(paper: PlanReport) -> None:
    student = paper.agents[0]
    assert student.placement is not None
    assert student.placement.training.fits
    assert student.placement.training.way == "FSDP"
    assert all(agent.placement.answering.fits for agent in paper.agents if agent.placement)
    assert paper.seconds is not None
    assert 1 < paper.seconds / 3600 < 12
    assert paper.cost == pytest.approx(paper.seconds / 3600 * 8 * 2.5)
    said = show(paper)
    assert "memory of one device by part, in GiB; 8xH100-80GB has 80" in said
    assert "FSDP over 8" in said
    assert "at 40% of 989 TFLOP/s a device (assumed)" in said
    assert "at 2.5 for each of 8 devices and hour" in said
    assert "the config differs; set engine.processes: 8, engine.sharding: fsdp, " in said


def test_plan_for_a_card_that_is_too_small_says_what_would_do() -> None:
    said = show(plan(load_config(PAPER), hardware="1xL4-24GB", utilisation=0.2))
    assert (
        "student: training does not fit 1xL4-24GB; what would do: 16xL4-24GB, with engine." in said
    )
    assert "at 20% of 121 TFLOP/s a device (asked for)" in said


def test_two_processes_on_a_cpu_are_planned_with_its_measured_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macpo.planning.report.measured_gflops", lambda *_: 100.0)
    config = load_config(write_config(tmp_path))
    report = plan(config, hardware="2xcpu")
    assert report.hardware.name == "2xcpu"
    train = next(s for s in report.stages if s.name == "round-1/student/train")
    assert train.operations is not None
    assert train.seconds == pytest.approx(train.operations / (100e9 * 0.7))
    assert "2 x whole" in show(report)
    assert plan(config).seconds == pytest.approx(report.seconds)


def test_a_folder_with_nothing_but_a_config_is_planned_and_not_run(tmp_path: Path) -> None:
    from macpo.config import ModelConfig
    from macpo.errors import ModelError
    from macpo.models.sources import resolve

    config = load_config(write_config(tmp_path))
    folder = tmp_path / "models" / "student"
    for file in folder.iterdir():
        if file.name != "config.json":
            file.unlink()
    report = plan(config, hardware="1xL4-24GB")
    student = report.agents[0]
    assert (student.local, student.parameters_estimated) == (False, False)
    assert student.memory is not None
    assert student.memory.training is not None
    assert any("weights of student (student) are not on this machine" in n for n in report.notes)
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        resolve(ModelConfig(source=str(folder)), fetch=True)


def test_report_for_hardware_is_json(paper: PlanReport) -> None:
    value: dict[str, Any] = json.loads(json.dumps(paper.to_json()))
    assert value["hardware"]["card"]["name"] == "H100-80GB"
    assert value["cost"] > 0
    parts = value["agents"][0]["placement"]["training"]["parts"]
    assert parts["weights"] > 69e9 * 2 / 8 / GIB
