"""Whatever lies in a run's folder or is given on the command line: an answer, or one line."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from macpo.config import ModelConfig
from macpo.dtype import read_resolved
from macpo.errors import ConfigError, MacpoError, ModelError, StoreError, TrainingError
from macpo.models import pruning
from macpo.models.folders import weight_files
from macpo.models.sources import resolve
from macpo.paths import user_path
from macpo.preflight import check_agent
from macpo.publish import merge_adapter
from macpo.run_directory import RunDir
from macpo.run_status import status
from macpo.store import Checkpoints, Journal, read_journal
from tests.runs import FinishedRun, run_cli
from tests.tiny import tiny_config, tiny_folder
from tests.training.test_trainer import config_of, make_trainer, sft
from tests.workbench import Workbench, make_agent

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1.5,
    float("nan"),
    "",
    "x" * 99,
    [],
    {},
    [[]],
    "\x1b",
)


def deep(levels: int = 100_000) -> str:
    """Return JSON that no parser follows to its end."""
    return "[" * levels


def odd_json(value: Any, generator: random.Random) -> Any:
    """Replace something in a JSON value by something of another type, or leave a key out."""
    if isinstance(value, dict) and value and generator.random() < 0.9:
        key = generator.choice(list(value))
        if generator.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: odd_json(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.9:
        at = generator.randrange(len(value))
        return [*value[:at], odd_json(value[at], generator), *value[at + 1 :]]
    return generator.choice(ODD)


def ends_well(command: Callable[[], Any]) -> None:
    """Call what is to give an answer or one of our errors, whose text is one line."""
    said = ""
    try:
        command()
    except MacpoError as error:
        said = str(error)
    assert "\n" not in said


@pytest.fixture(scope="module")
def light(finished: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small files of a finished run alone, which take no time to copy."""
    folder = tmp_path_factory.mktemp("light") / "run"
    heavy = shutil.ignore_patterns("*.safetensors", "tokenizer*", "responses.jsonl", "report.html")
    shutil.copytree(finished.folder, folder, symlinks=True, ignore=heavy)
    return folder


@pytest.mark.parametrize("name", ["run.json", "plan.json", "progress.json", "metrics.jsonl"])
def test_status_of_a_run_whose_files_hold_odd_things(light: Path, name: str) -> None:
    run = RunDir(light)
    path = light / name
    before = (
        path.read_text() if path.exists() else json.dumps({"stage": "a", "key": "b", "done": 1})
    )
    generator = random.Random(0)
    rows = before.splitlines() if name.endswith("l") else [before]
    try:
        for _ in range(20):
            odd = [json.dumps(odd_json(json.loads(row), generator)) for row in rows]
            path.write_text("\n".join(odd) + "\n")
            ends_well(lambda: status(light))
            ends_well(run.resolved)
            ends_well(run.metrics)
        for text in ("", "{", "null", deep(), "\udcff", '{"a": NaN}'):
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
            ends_well(lambda: status(light))
            ends_well(run.resolved)
            ends_well(run.metrics)
    finally:
        path.write_text(before)


def test_damaged_lines_of_a_journal_are_passed_over_and_told(
    light: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = light / "journal.jsonl"
    before = path.read_bytes()
    whole = read_journal(path)
    generator = random.Random(1)
    lines = before.splitlines(keepends=True)
    try:
        for _ in range(30):
            at = generator.randrange(len(lines))
            if generator.random() < 0.5:
                line = bytearray(lines[at])
                line[generator.randrange(len(line) - 1)] ^= 1 << generator.randrange(8)
                damaged = bytes(line)
            else:
                damaged = json.dumps(odd_json(json.loads(lines[at]), generator)).encode() + b"\n"
            path.write_bytes(b"".join([*lines[:at], damaged, *lines[at + 1 :]]))
            ends_well(lambda: status(light))
        path.write_bytes(lines[0] + b"\x00\xff\n" + b"[1]\n" + b"".join(lines[1:]))
        caplog.clear()
        assert read_journal(path) == whole
        assert read_journal(path) == whole
        [told] = caplog.messages
        assert "2 of its lines are damaged and passed over, the first is line 2" in told
        Journal(path).append("found", stage="a", key="b")
        assert read_journal(path)[:-1] == whole
    finally:
        path.write_bytes(before)


def test_run_goes_on_over_a_damaged_journal_and_without_the_machines_name(
    copied: FinishedRun,
) -> None:
    journal = copied.folder / "journal.jsonl"
    journal.write_bytes(b'{"event": "found"}\n\xff\n' + journal.read_bytes())
    resolved = json.loads((copied.folder / "run.json").read_text())
    del resolved["machine"]
    (copied.folder / "run.json").write_text(json.dumps(resolved))
    result = run_cli(["run", copied.config, "--out", copied.folder])
    assert result.code == 0, result.err
    assert "Traceback" not in result.err


def test_plan_over_a_damaged_split_says_that_it_is_made_again(copied: FinishedRun) -> None:
    split = (copied.folder / "stages/data").resolve() / "test.jsonl"
    text = split.read_text()
    for damaged in (text[: len(text) // 2], text.replace('"', "'"), "[]\n" + text[3:]):
        split.write_text(damaged)
        report = run_cli(["plan", copied.config, "--out", copied.folder, "--json"])
        assert report.code == 0, report.err
        states = {s["name"]: s["state"] for s in json.loads(report.out)["stages"]}
        assert states["data"] == "damaged"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: deep(),
        lambda text: json.dumps({**json.loads(text), "base_model_name_or_path": 7}),
        lambda text: json.dumps({**json.loads(text), "revision": []}),
        lambda text: json.dumps({**json.loads(text), "peft_type": "NONE"}),
        lambda text: json.dumps({**json.loads(text), "r": "x", "target_modules": 3}),
    ],
)
def test_export_of_an_odd_adapter_is_one_line(
    finished: FinishedRun, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    adapter = tmp_path / "adapter"
    ours = shutil.ignore_patterns("manifest.json")  # else the checksums tell
    shutil.copytree(finished.folder / "final" / "student", adapter, ignore=ours)
    config = adapter / "adapter_config.json"
    config.write_text(damage(config.read_text()))
    with pytest.raises(ModelError) as caught:
        merge_adapter(adapter, tmp_path / "merged")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()


def test_export_never_reads_pickled_weights(finished: FinishedRun, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    ours = shutil.ignore_patterns("manifest.json", "*.safetensors")
    shutil.copytree(finished.folder / "final" / "student", adapter, ignore=ours)
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled weights are never read"):
        merge_adapter(adapter, tmp_path / "merged")


@pytest.mark.parametrize(
    "weight_map", [[], {"a": 1}, {"a": ["b"]}, {"a": "../../outside.safetensors"}, {"a": None}]
)
def test_index_of_odd_types_is_one_line(tmp_path: Path, weight_map: Any) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=r"not an index of weight files; fetch it again$"):
        weight_files(tmp_path)


def test_full_disk_while_a_model_is_cut_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACPO_CACHE", str(tmp_path / "cache"))
    folder = tiny_folder(tmp_path / "base", layers=2)

    def full(*given: Any, **more: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error (os error 28)")

    import safetensors.torch

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ModelError, match=r"cannot be written .*free some space") as caught:
        resolve(ModelConfig(source=str(folder), layers="0"))
    assert "\n" not in str(caught.value)
    assert pruning.RECIPE


@pytest.mark.parametrize(
    ("path", "said"),
    [("~nobody-of-that-name/x", "there is no such user"), ("x" * 5000, "too long for a path")],
)
def test_odd_path_is_one_line(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        user_path(path)
    for command in (["data", "check", path], ["status", path], ["export", path, path]):
        result = run_cli(command)
        assert result.code == 1
        assert result.err.startswith("macpo: ")
        assert len(result.err.splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_behind_stdout_is_one_line(
    light: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from macpo.cli import main

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            main(["status", str(light)])
        monkeypatch.undo()
    assert ended.value.code == 1
    assert capfd.readouterr().err == f"macpo: {os.strerror(errno.ENOSPC)}\n"


def test_layers_that_slide_over_no_window_are_refused(tmp_path: Path) -> None:
    config = tiny_config("qwen3", layers=2)
    folder = tiny_folder(tmp_path / "base", "qwen3", layers=2)
    values = json.loads((folder / "config.json").read_text())
    values |= {"layer_types": ["sliding_attention"] * 2, "sliding_window": None}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(
        ModelError, match=r"lists layers of sliding_attention and no sliding_window"
    ):
        check_agent(make_agent(folder))
    assert config.sliding_window is None


def test_truncated_weights_are_refused_before_anybody_works(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "base", layers=1)
    [file] = weight_files(folder)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors: not a whole file of weights"):
        check_agent(make_agent(folder))


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path.parent)])
def test_file_or_link_in_a_checkpoints_place_does_not_block_the_resume(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, lambda folder: (folder / "state").write_text("1") and None)
    make(checkpoints.folder / "step-00000002")
    assert checkpoints.latest() == (1, checkpoints.folder / "step-00000001")
    make(checkpoints.folder / "step-00000002")
    checkpoints.save(2, lambda folder: (folder / "state").write_text("2") and None)
    assert checkpoints.latest() == (2, checkpoints.folder / "step-00000002")
    assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize(
    "changes", [{"threads": "two"}, {"machine": 1}, {"matmul_gflops": []}, {"dtype": []}]
)
def test_run_file_of_odd_types_is_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"dtype": "float32", **changes}))
    with pytest.raises(StoreError, match=r"delete it to resolve anew$"):
        read_resolved(path)


@pytest.mark.parametrize(
    "tensor", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"]
)
def test_weights_that_are_no_numbers_are_told_as_such(tmp_path: Path, tensor: str) -> None:
    """Those that the first trial meets, and those of a token that only the data hold."""
    folder = tiny_folder(tmp_path / "base", layers=1)
    [file] = weight_files(folder)
    weights = load_file(file)
    weights[tensor][-1 if "mlp" in tensor else 70] = float("nan")  # 70 is a token of the groups
    save_file(weights, file, metadata={"format": "pt"})
    bench = Workbench(tmp_path)
    said = rf"its weights are not finite \(.*{tensor.removesuffix('.weight')}.* holds NaN or inf"
    with pytest.raises((ModelError, TrainingError), match=said):
        make_trainer(bench.train_from(make_agent(folder)), sft(), config_of(), tmp_path).train()
