"""The crash-safe store: finished stages as checksummed artifacts, checkpoints, lock and journal.

    run directory
    ├── lock                RunLock: one process at a time (a store may be several runs')
    ├── journal.jsonl       Journal: what happened when
    ├── progress.json       Progress: where the running stage is
    └── store/              Store
        ├── sft-6f0c…/      a committed artifact: its files and manifest.json
        ├── .partial/       stages under way: an output to commit, and checkpoints to resume from
        ├── .leases/        who is at work on what, where locks do not reach (lease)
        ├── .damaged/       artifacts that did not match their checksums, set aside
        └── times.jsonl     Journal: how long stages took

An artifact either is there whole or is not there at all, whatever kills the process; and two runs
of one stage leave the same bytes.
"""

from __future__ import annotations

from macpo.store.artifacts import TIMES, Artifact, Store, Workspace, artifact_folder
from macpo.store.atomic import (
    commit_directory,
    new_directory,
    translate_write_errors,
    write_text_atomic,
)
from macpo.store.checkpoints import Checkpoints
from macpo.store.claims import Claim, Claims, LockClaims
from macpo.store.journal import Journal, Progress, describe_stop, read_journal, read_progress
from macpo.store.lease import LeaseClaims
from macpo.store.lock import Holder, RunLock, lock_holder
from macpo.store.manifest import MANIFEST, Manifest, folder_state, read_manifest, verify

__all__ = [
    "MANIFEST",
    "TIMES",
    "Artifact",
    "Checkpoints",
    "Claim",
    "Claims",
    "Holder",
    "Journal",
    "LeaseClaims",
    "LockClaims",
    "Manifest",
    "Progress",
    "RunLock",
    "Store",
    "Workspace",
    "artifact_folder",
    "commit_directory",
    "describe_stop",
    "folder_state",
    "lock_holder",
    "new_directory",
    "read_journal",
    "read_manifest",
    "read_progress",
    "translate_write_errors",
    "verify",
    "write_text_atomic",
]
