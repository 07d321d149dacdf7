"""What an engine is given of a policy: its adapter, or the folder with all its weights.

Names and numbers come of the content alone. Engines keep what they loaded under a name or number,
and would go on with old weights under a used one. What is under such a name is on the disk to its
last byte before it gets the name: nobody looks at it again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from macpo.adapters import write_adapter
from macpo.generation.served.engine import Adapter
from macpo.models.classes import copy_processors
from macpo.seeds import digest, file_digest
from macpo.store.atomic import fsync_directory, fsync_tree

if TYPE_CHECKING:
    from macpo.agents import Policy
    from macpo.policies import LoadedPolicy

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The greatest ranks that vLLM lets an engine be made for, but for 1."""

LARGEST_ID = 2**31 - 1  # some of vLLM's arrays of adapter numbers had 32 bits


def allowed_rank(rank: int) -> int | None:
    """Return the least rank that vLLM allows and that holds adapters of this one; None if none."""
    return next((allowed for allowed in RANKS if rank <= allowed), None)


def adapter_of(content: str, folder: Path) -> Adapter:
    """Return how an engine is told of an adapter.

    Args:
        content: digest of its files, 64 hexadecimal characters.
        folder: in which its own folder is.
    """
    name = content[:32]
    return Adapter(name, 1 + int(content[:16], 16) % LARGEST_ID, str(folder / name))


def hand_over_adapter(loaded: LoadedPolicy, policy: Policy, home: Path) -> Adapter:
    """Write a policy's adapter for an engine, in a folder named by its content.

    Args:
        loaded: the policy.
        policy: likewise.
        home: where the folder goes; one that is there already is left as it is.
    """
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home, prefix=".writing-") as name:
        partial = Path(name) / "adapter"
        partial.mkdir()
        write_adapter(loaded.model, partial, base=policy.agent.base.location, revision=None)
        files = sorted(partial.iterdir())
        adapter = adapter_of(digest([[f.name, file_digest(f)] for f in files]), home)
        if not Path(adapter.path).exists():
            fsync_tree(partial)
            partial.rename(adapter.path)
            fsync_directory(home)
    return adapter


def hand_over_weights(loaded: LoadedPolicy, policy: Policy, home: Path) -> Path:
    """Write all weights of a policy that trains whole; return the folder.

    Args:
        loaded: the policy.
        policy: likewise.
        home: where the folder goes, under the name of the weights' key.
    """
    target = home / policy.weights_key[:32]
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=home, prefix=".writing-") as name:
            partial = Path(name) / "model"
            loaded.model.save_pretrained(partial)
            copy_processors(Path(policy.agent.base.location), partial)
            fsync_tree(partial)
            partial.rename(target)
            fsync_directory(home)
    return target
