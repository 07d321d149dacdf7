from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from macpo.config import ModelConfig
from macpo.errors import ModelError
from macpo.models.loading import load_model, parameter_count
from macpo.models.sources import resolve
from tests.tiny import tiny_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test an empty hub cache, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))

    def no_network(*_: object, **__: object) -> None:
        raise OSError("network is down")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return folder


def put_in_cache(hub_cache: Path, name: str, revision: str = "main", commit: str = COMMIT) -> Path:
    """Put a tiny model into the hub cache as if it had been fetched."""
    repo = hub_cache / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / revision).write_text(commit)
    return tiny_folder(repo / "snapshots" / commit)


def message(source: str, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(ModelConfig(source=source, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    resolved = resolve(ModelConfig(source="./mine"))
    assert (resolved.name, resolved.location) == ("mine", str(folder))
    assert (resolved.local, resolved.revision) == (True, None)
    assert resolve(ModelConfig(source="mine")) == resolved  # a folder comes before the hub
    load_model(resolved, torch.float32, "cpu")


def test_folder_digest_follows_the_content_not_the_place(tmp_path: Path) -> None:
    first = tiny_folder(tmp_path / "a")
    digest = resolve(ModelConfig(source=str(first))).digest
    shutil.copytree(first, tmp_path / "b")
    assert resolve(ModelConfig(source=str(tmp_path / "b"))).digest == digest
    (first / "README.md").write_text("no part of the model")
    assert resolve(ModelConfig(source=str(first))).digest == digest
    tiny_folder(first, seed=1)
    assert resolve(ModelConfig(source=str(first))).digest != digest


def test_config_change_changes_the_digest(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "a")
    digest = resolve(ModelConfig(source=str(folder))).digest
    config = folder / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-05"))
    assert resolve(ModelConfig(source=str(folder))).digest != digest


def test_missing_folder_suggests_a_near_one(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "llama-7b")
    missing = tmp_path / "lama-7b"
    assert message(str(missing)) == f"{missing}: no such model folder; did you mean {folder}?"
    lost = tmp_path / "no" / "llama-7b"
    assert message(str(lost)) == (
        f"{lost}: no such model folder, nor the folder {lost.parent} that it would be in; "
        "check the path"
    )


def test_folder_above_a_model_suggests_the_model(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "runs" / "step-100")
    assert message(str(folder.parent)) == (
        f"{folder.parent}: no config.json in this folder; did you mean {folder}?"
    )


def test_adapter_folder_that_names_no_base_asks_for_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "no adapter_model.safetensors in this adapter's folder" in message(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").touch()
    assert message(str(tmp_path)) == (
        f"{tmp_path}: an adapter over a base that it does not name, which is not here; write "
        f"model: {{source: BASE, adapter: {tmp_path}}}"
    )


def test_folder_with_a_gguf_file_asks_for_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model-q8.gguf"
    file.write_bytes(b"GGUF")
    assert f"name the GGUF file itself: {file}" in message(str(tmp_path))


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "old")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert message(str(folder)) == (
        f"{folder}: only pickled weights (pytorch_model.bin), which can run code when opened and "
        "are never read; save the model again with transformers, which writes safetensors"
    )


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
    )
    (folder / "model-1.safetensors").write_bytes(b"")
    assert message(str(folder)) == (
        f"{folder}: 1 of 2 weight files are missing, the first is model-2.safetensors; "
        "fetch the model again"
    )
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "not an index of weight files" in message(str(folder))


@pytest.mark.parametrize(
    ("source", "option", "what"),
    [
        ("{folder}", {"revision": "main"}, "revision has no effect on a local folder"),
        ("x.gguf", {"revision": "main"}, "revision has no effect on a GGUF file"),
        ("x.gguf", {"trust_remote_code": True}, "trust_remote_code has no effect on a GGUF file"),
        ("pypi:x", {"revision": "1"}, r"revision has no effect on a package (write pypi:NAME=="),
    ],
)
def test_options_without_effect_are_refused(
    tmp_path: Path, source: str, option: dict[str, object], what: str
) -> None:
    assert what in message(source.format(folder=tiny_folder(tmp_path / "m")), **option)


def test_cached_hub_model_needs_no_network(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked"))
    folder = put_in_cache(hub_cache, "org/tiny-llm")
    resolved = resolve(ModelConfig(source="org/tiny-llm"))
    assert resolved.location == str(folder)
    assert (resolved.name, resolved.digest) == ("org/tiny-llm", COMMIT)
    assert (resolved.revision, resolved.local) == (COMMIT, True)
    assert resolve(ModelConfig(source="org/tiny-llm"), fetch=False) == resolved
    load_model(resolved, torch.float32, "cpu")


def test_revision_of_a_hub_model_is_honoured(hub_cache: Path) -> None:
    other = COMMIT[::-1]
    put_in_cache(hub_cache, "org/tiny-llm")
    put_in_cache(hub_cache, "org/tiny-llm", revision="v2", commit=other)
    resolved = resolve(ModelConfig(source="org/tiny-llm", revision="v2"))
    assert (resolved.name, resolved.digest) == ("org/tiny-llm@v2", other)
    assert resolve(ModelConfig(source="org/tiny-llm", revision=COMMIT)).digest == COMMIT


def test_unfetched_hub_model_can_be_planned(hub_cache: Path) -> None:
    planned = resolve(ModelConfig(source="org/tiny-llm-70b"), fetch=False)
    assert (planned.digest, planned.local, planned.location) == (None, False, "org/tiny-llm-70b")
    pinned = resolve(ModelConfig(source="org/tiny-llm-70b", revision=COMMIT), fetch=False)
    assert (pinned.digest, pinned.local) == (COMMIT, False)
    pruned = resolve(ModelConfig(source="org/tiny-llm-70b", layers="0-3"), fetch=False)
    assert (pruned.name, pruned.digest, pruned.layers) == (
        "org/tiny-llm-70b[0-3]",
        None,
        (0, 1, 2, 3),
    )


def test_half_fetched_hub_model_is_known_but_not_local(hub_cache: Path) -> None:
    folder = put_in_cache(hub_cache, "org/tiny-llm")
    (folder / "model.safetensors").unlink()
    planned = resolve(ModelConfig(source="org/tiny-llm"), fetch=False)
    assert (planned.digest, planned.local) == (COMMIT, False)
    count = parameter_count(planned)
    assert count is not None
    assert not count.estimated


def test_offline_hub_says_what_was_tried(hub_cache: Path) -> None:
    put_in_cache(hub_cache, "org/tiny-llm")
    text = message("org/tiny-lm")
    assert text.startswith(
        "org/tiny-lm: not a folder here, not complete in the hub cache, and the hub cannot be "
        "reached ("
    )
    assert text.endswith(
        "(did you mean org/tiny-llm, which is in the cache?); go online once, or name a folder"
    )


def test_near_folder_is_suggested_for_what_looks_like_a_hub_name(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_folder(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    expected = f"(did you mean the folder {os.path.join('models', 'mine')}?)"
    assert expected in message("models/mime")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (GatedRepoError, "org/x: gated; accept its terms on its hub page and run `hf auth login`"),
        (RevisionNotFoundError, "org/x: the hub has no revision 'v9' of it"),
        (
            RepositoryNotFoundError,
            "org/x: neither a folder here nor a model on the hub; check the spelling, or run "
            "`hf auth login` if it is private",
        ),
    ],
)
def test_answers_of_the_hub_become_one_line(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], text: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error.__new__(error)  # without the HTTP response that they are made from

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert message("org/x", revision="v9") == text


def test_fetch_asks_for_safetensors_and_for_code_only_if_trusted(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, list[str]]] = []

    def download(name: str, **options: list[str]) -> str:
        asked.append(options)
        return str(put_in_cache(hub_cache, name))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    resolve(ModelConfig(source="org/a"))
    resolve(ModelConfig(source="org/b", trust_remote_code=True))
    patterns = [set(options["allow_patterns"]) for options in asked]
    assert "*.safetensors" in patterns[0]
    assert patterns[1] - patterns[0] == {"*.py"}
    assert not any("bin" in pattern for pattern in patterns[1])


def test_hub_model_without_safetensors_is_refused(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, **_: object) -> str:
        folder = put_in_cache(hub_cache, name)
        (folder / "model.safetensors").unlink()
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert message("org/old").startswith("org/old: the hub has no safetensors weights of it")


def test_modules_that_the_command_line_imports_are_light() -> None:
    modules = "chat, encoding, folders, gguf, hub, loading, pruning, sources, templates"
    heavy = "{'torch', 'transformers', 'tokenizers', 'safetensors', 'huggingface_hub'}"
    program = f"import sys; from macpo.models import {modules}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
