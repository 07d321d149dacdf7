"""Build the sdist and the wheel, and use the wheel as somebody does who has nothing else.

    python tools/try_dist.py                 # into a fresh virtual environment, with all it needs
    python tools/try_dist.py --lend          # the needs are those of this environment: seconds

The wheel is installed outside the repository and used there: the version, `macpo init`, the plan
of a shipped example, a whole run on tiny models (made by the sdist's own test helpers), the public
API. With `--lend` the new environment sees this one's packages, so that nothing is downloaded; pip
still checks that they are all that the wheel asks for, but a package that macpo imports and does
not ask for is found only without it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
FIRST = "torch"
"""Installed before the wheel, at its pinned version, so that no larger build of it is taken."""

MAKE_MODELS = """\
from pathlib import Path
from tests.runs import write_config
write_config(Path())
"""
USE_API = """\
import macpo
assert "site-packages" in macpo.__file__, macpo.__file__
for name in macpo.__all__:
    getattr(macpo, name)
config = macpo.load_config("example:quickstart")
print(len(macpo.plan(config).to_run), "stages;", ", ".join(macpo.__all__))
"""
SMALL = (
    "rounds=1",
    "sft={epochs: 1, learning_rate: 1.0e-2, batch_size: 4}",
    "negative_sft={epochs: 1, learning_rate: 1.0e-2, batch_size: 4}",
    "dpo={batch_size: 4}",
    "sampling.max_new_tokens=8",
    "limits={prompt_tokens: 128, response_tokens: 64}",
    "evaluation.answers=2",
)


def main() -> None:
    """Build, check and try."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lend", action="store_true", help="share this environment's packages")
    args = parser.parse_args()
    sdist, wheel = build()
    check_sdist(sdist)
    with tempfile.TemporaryDirectory(prefix="macpo-dist-") as folder:
        home = Path(folder)
        python = make_environment(home / "venv", wheel, lend=args.lend)
        with tarfile.open(sdist) as archive:
            archive.extractall(home, filter="data")
        (home / "work").mkdir()
        use(python, home / "work", sources=home / sdist.name.removesuffix(".tar.gz"))
    print(f"{sdist.name} and {wheel.name} in {DIST.name}/ work")


def build() -> tuple[Path, Path]:
    """Build both with the pinned back end; returns their paths."""
    for old in DIST.glob("macpo-*"):
        old.unlink()
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(DIST), str(ROOT)], ROOT)
    (sdist,) = DIST.glob("*.tar.gz")
    (wheel,) = DIST.glob("*.whl")
    return sdist, wheel


def check_sdist(sdist: Path) -> None:
    """Refuse an sdist that lacks a file of the repository: tests, examples and docs need them."""
    if not (ROOT / ".git").exists():
        return  # built from an sdist
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    missing = sorted(tracked - held)
    if missing:
        sys.exit(f"{sdist.name} lacks {', '.join(missing[:5])} ({len(missing)} files in all)")


def make_environment(folder: Path, wheel: Path, *, lend: bool) -> str:
    """Make a virtual environment with the wheel in it; returns its Python."""
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    if lend:
        (inside,) = folder.glob("lib/python*/site-packages")
        # A path in a .pth file is searched after the environment's own, and .pth files in it are
        # not read: this environment's editable macpo stays out.
        (inside / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        run([*pip, "--no-index", str(wheel)], folder)
    else:
        pinned = [*pip, "--constraint", str(ROOT / "constraints.txt")]
        run([*pinned, FIRST], folder)
        run([*pinned, str(wheel)], folder)
    return python


def use(python: str, work: Path, sources: Path) -> None:
    """Use the installed macpo in `work`; `sources` is the unpacked sdist."""
    macpo = str(Path(python).with_name("macpo"))
    models = ["--student", "models/student", "--teacher", "models/weak-a", "--teacher"]
    changes = [word for change in SMALL for word in ("--set", change)]
    run([macpo, "--version"], work)
    run([macpo, "examples"], work)
    run([macpo, "plan", "example:quickstart"], work)
    run([macpo, "compare", "example:compare/main", "--dry-run"], work)
    run([macpo, "init"], work)
    run([macpo, "plan", "my-run.yaml"], work)
    run([python, "-c", MAKE_MODELS], work, PYTHONPATH=str(sources))
    run([macpo, "init", "tiny-run.yaml", "--data", "pairs.jsonl", *models, "models/weak-b"], work)
    run([macpo, "run", "tiny-run.yaml", *changes], work)
    run([macpo, "status", "runs/tiny-run"], work)
    run([python, "-c", USE_API], work)


def run(command: Sequence[str], folder: Path, **environment: str) -> None:
    """Run a command in `folder`; its output is shown only when it fails, and ends all."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**kept, "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    shown = shlex.join(command).replace(str(folder), ".").partition("\n")[0]
    print(f"{'ok    ' if done.returncode == 0 else 'FAILED'} {shown[:150]}", flush=True)
    if done.returncode:
        sys.exit(done.stdout)


if __name__ == "__main__":
    main()
