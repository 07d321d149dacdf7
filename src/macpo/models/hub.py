"""Models of the Hugging Face hub: what the local cache holds, and fetching what it does not."""

from __future__ import annotations

import difflib
import logging
import re
from pathlib import Path

from macpo.errors import ModelError
from macpo.models.folders import is_complete, near_path

logger = logging.getLogger("macpo")

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")

# Top-level files only: sub-folders hold other formats of the same weights (onnx/, original/).
WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "*.txt", "README.md")
UNWANTED = ("*/*", "consolidated*.safetensors")


def cached_snapshot(name: str, revision: str | None) -> Path | None:
    """Return the folder of `name` at `revision` in the local hub cache; the network is not used.

    The folder is named after the commit and holds at least the config, perhaps no weights yet.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def fetch_snapshot(name: str, revision: str | None, *, with_code: bool) -> Path:
    """Return the folder of `name` at `revision`, fetched unless the cache holds all of it.

    Without a revision a cached `main` is used as it is, even where the hub has a newer one: a run
    must not change its base model because the network came back.

    Args:
        name: hub name, `owner/model`.
        revision: branch, tag or commit.
        with_code: fetch Python files too, for `trust_remote_code`.

    Raises:
        ModelError: there is no such model, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cached = cached_snapshot(name, revision)
    if cached is not None and is_complete(cached):
        return cached
    logger.info("fetching %s from the hub", name if revision is None else f"{name}@{revision}")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*WANTED, *(["*.py"] if with_code else [])],
                ignore_patterns=list(UNWANTED),
            )
        )
    except GatedRepoError as error:
        raise ModelError(
            f"{name}: gated; accept its terms on its hub page and run `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{name}: the hub has no revision {revision!r} of it") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{name}: neither a folder here nor a model on the hub{_near(name)}; check the "
            "spelling, or run `hf auth login` if it is private"
        ) from error
    except Exception as error:  # no network has many names: OSError, httpx errors, hub errors
        raise ModelError(
            f"{name}: not a folder here, not complete in the hub cache, and the hub cannot be "
            f"reached ({type(error).__name__}){_near(name)}; go online once, or name a folder"
        ) from error


def _near(name: str) -> str:
    """Suggest a folder here, or a cached model, with a name like `name`."""
    from huggingface_hub import constants

    folder = near_path(Path(name))
    if folder is not None:
        return f" (did you mean the folder {folder}?)"
    folders = Path(constants.HF_HUB_CACHE).glob("models--*")
    cached = sorted(f.name.removeprefix("models--").replace("--", "/") for f in folders)
    near = difflib.get_close_matches(name, [c for c in cached if c != name], n=1, cutoff=0.6)
    return f" (did you mean {near[0]}, which is in the cache?)" if near else ""
