"""A disk that may lose its power: what was done to it, and the states in which it may be found.

    with recording(root) as recorder:
        work()                            # every call that changes the disk is a moment
    moment = recorder.moments[17]
    write_out(moment, root, Draw(3))      # how `root` may be found if the power went then

The model is POSIX's, with nothing that a file system may do besides taken for granted:

- What was written to a file since its last fsync may be missing, cut short, full of holes or zeros,
  old, or there. A file that was never synced may be empty.
- Each name in a folder is what it was at the folder's last fsync, or what it has become since, at
  any step; names change independently of one another, and of what the files hold.
- A file that was renamed may be found under its old name, its new one or both, a folder under one
  of them; neither is lost by that.
- What was synced stays, if the folders on the way to it are there.

What calls do is not taken from their arguments but seen: before an fsync and after every other call
the tree is looked at, so that files written by libraries, in whatever way, are taken in.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

CALLS = (
    *("chmod", "fdatasync", "fsync", "ftruncate", "link", "mkdir", "open", "remove", "rename"),
    *("replace", "rmdir", "symlink", "truncate", "unlink", "write"),
)
SYNCS = ("fdatasync", "fsync")
MOST_VERSIONS = 5
SECTOR = 512
COARSE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class File:
    """What a file held at its last fsync, and since then."""

    versions: tuple[bytes, ...] = (b"",)


@dataclass(frozen=True, slots=True)
class Folder:
    """What each name stood for at the last fsync, and since then: an inode, or None for nothing."""

    entries: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


Node = File | Folder | Link


@dataclass(frozen=True, slots=True)
class Moment:
    """The disk after a call: its nodes by inode, and what was promised by then."""

    call: str
    root: int
    nodes: Mapping[int, Node]
    marks: tuple[str, ...]


class Choice(Protocol):
    """What was lost."""

    def entry(self, count: int) -> int:
        """Choose one of the things that a name has stood for, the durable one first."""
        ...

    def content(self, versions: Sequence[bytes]) -> bytes:
        """Choose what a file holds of its versions, the durable one first; there are several."""
        ...


@dataclass(frozen=True, slots=True)
class Extreme:
    """The same for all: names are the durable or the newest ones, contents are damaged one way."""

    names: str
    data: str

    def entry(self, count: int) -> int:
        """See `Choice`."""
        return 0 if self.names == "old" else count - 1

    def content(self, versions: Sequence[bytes]) -> bytes:
        """See `Choice`."""
        newest = versions[-1]
        kept = _common(versions)
        if self.data == "old":
            return versions[0]
        if self.data == "cut":
            return newest[: kept + (len(newest) - kept) // 2]
        if self.data == "zeros":
            return newest[:kept] + bytes(len(newest) - kept)
        return newest


EXTREMES = (
    Extreme("old", "old"),
    Extreme("new", "new"),
    Extreme("new", "old"),
    Extreme("new", "cut"),
    Extreme("new", "zeros"),
    Extreme("old", "new"),
)


class Draw:
    """Each name and each content for itself, by a seed."""

    def __init__(self, seed: object) -> None:
        self._draw = random.Random(str(seed))
        self._lucky = self._draw.choice((0.1, 0.5, 0.9))  # the share of names that are the newest

    def entry(self, count: int) -> int:
        """See `Choice`."""
        if self._draw.random() < self._lucky:
            return count - 1
        return self._draw.randrange(count)

    def content(self, versions: Sequence[bytes]) -> bytes:
        """See `Choice`."""
        version = self._draw.choice(versions)
        kept = min(_common(versions), len(version))
        tail = version[kept:]
        way = self._draw.randrange(5)
        if way == 1:
            tail = tail[: self._draw.randint(0, len(tail))]
        elif way == 2:
            at = self._draw.randint(0, len(tail))
            tail = tail[:at] + bytes(len(tail) - at)
        elif way == 3:
            parts = (tail[i : i + SECTOR] for i in range(0, len(tail), SECTOR))
            tail = b"".join(p if self._draw.random() < 0.5 else bytes(len(p)) for p in parts)
        elif way == 4:  # the start of the new over the end of the old
            at = self._draw.randint(0, len(tail))
            tail = tail[:at] + versions[0][kept + at :]
        return version[:kept] + tail


def _common(versions: Sequence[bytes]) -> int:
    """Return how many bytes all versions start with: those were never written over."""
    first, last = min(versions), max(versions)  # all others lie between
    return next((i for i, byte in enumerate(first) if last[i] != byte), len(first))


class Recorder:
    """Takes in what becomes of everything below a folder; see `recording`.

    Attributes:
        moments: after each call that changed something, and at each mark.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.moments: list[Moment] = []
        self._nodes: dict[int, Node] = {}
        self._marks: list[str] = []
        self._seen: dict[int, tuple[int, ...]] = {}
        self._held: list[int] = []
        self._changed = True
        self._look()
        for number in list(self._nodes):
            self._settle(number)
        self.add("start")

    def mark(self, text: str) -> None:
        """Note a promise that was made: what it says has to be there from now on."""
        self._marks.append(text)
        self._changed = True
        self.add(text)

    def add(self, call: str) -> None:
        """Look, and add a moment if anything has changed."""
        self._look()
        if self._changed:
            root = os.lstat(self.root).st_ino
            self.moments.append(Moment(call, root, dict(self._nodes), tuple(self._marks)))
            self._changed = False

    def sync(self, descriptor: int) -> None:
        """Take what is open under a descriptor for durable from now on."""
        self._look()
        self._settle(os.fstat(descriptor).st_ino)
        self.add("fsync")

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self._held:
            os.close(descriptor)

    def _settle(self, number: int) -> None:
        node = self._nodes.get(number)
        if isinstance(node, File) and len(node.versions) > 1:
            self._set(number, File(node.versions[-1:]))
        elif isinstance(node, Folder) and any(len(was) > 1 for was in node.entries.values()):
            now = {name: was[-1:] for name, was in node.entries.items() if was[-1] is not None}
            self._set(number, Folder(now))

    def _set(self, number: int, node: Node) -> None:
        self._nodes[number] = node
        self._changed = True

    def _look(self) -> None:
        """Take in how the tree is now."""
        folders = [str(self.root)]
        while folders:
            folder = folders.pop()
            number = os.lstat(folder).st_ino
            self._hold(number, folder)
            entries: dict[str, int] = {}
            with os.scandir(folder) as found:
                for entry in found:
                    stat = entry.stat(follow_symlinks=False)
                    entries[entry.name] = stat.st_ino
                    self._hold(stat.st_ino, entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_symlink():
                        self._nodes.setdefault(stat.st_ino, Link(os.readlink(entry.path)))
                    else:
                        self._look_at_file(entry.path, stat)
            self._look_at_names(number, entries)

    def _look_at_file(self, path: str, stat: os.stat_result) -> None:
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        # Clocks of file systems are coarse: what was written a moment ago may look unchanged.
        if self._seen.get(stat.st_ino) == state and time.time() - stat.st_mtime > COARSE_SECONDS:
            return
        self._seen[stat.st_ino] = state
        with open(path, "rb") as file:
            content = file.read()
        node = self._nodes.get(stat.st_ino, File())
        assert isinstance(node, File)
        if stat.st_ino not in self._nodes or node.versions[-1] != content:
            first, *others = (*node.versions, content)
            self._set(stat.st_ino, File((first, *others[-MOST_VERSIONS:])))

    def _look_at_names(self, number: int, entries: Mapping[str, int]) -> None:
        node = self._nodes.get(number, Folder())
        assert isinstance(node, Folder)
        found = dict(node.entries)
        for name in node.entries.keys() | entries.keys():
            was, now = node.entries.get(name, (None,)), entries.get(name)
            if was[-1] != now:
                found[name] = (*was, now)
        if number not in self._nodes or found != node.entries:
            self._set(number, Folder(found))

    def _hold(self, number: int, path: str) -> None:
        """Keep an inode's number from being given to another one."""
        if number not in self._nodes:
            flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC
            with contextlib.suppress(OSError):  # of a link, where only Linux can
                self._held.append(_OPEN(path, flags))


_OPEN = os.open


@contextlib.contextmanager
def recording(root: Path) -> Iterator[Recorder]:
    """Record what this process does below a folder; what is there before is durable.

    Nothing is really synced meanwhile.
    """
    recorder, process = Recorder(root), os.getpid()
    busy = False

    def watched(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal busy
            if busy or os.getpid() != process or (name == "open" and not args[1] & os.O_CREAT):
                return real(*args, **kwargs)
            busy = True
            try:
                if name in SYNCS:
                    return recorder.sync(args[0])
                result = real(*args, **kwargs)
                recorder.add(name)
                return result
            finally:
                busy = False

        return call

    plain = {name: getattr(os, name) for name in CALLS}
    for name, real in plain.items():
        setattr(os, name, watched(name, real))
    try:
        yield recorder
    finally:
        for name, real in plain.items():
            setattr(os, name, real)
        recorder.add("end")
        recorder.close()


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Let fsync do nothing, which is slow and not what is tried."""
    plain = os.fsync
    os.fsync = lambda descriptor: None
    try:
        yield
    finally:
        os.fsync = plain


def write_out(moment: Moment, target: Path, choice: Choice) -> None:
    """Let a folder, emptied before, be as the disk may be found after a moment."""
    if target.exists():
        shutil.rmtree(target)
    _write(moment.root, target, moment.nodes, _names(moment, choice), choice)


def _names(moment: Moment, choice: Choice) -> dict[int, dict[str, int]]:
    """Choose what the names in each folder stand for."""
    found: dict[int, dict[str, int]] = {}
    newest: dict[int, tuple[int, str]] = {}
    durable: set[int] = set()
    for number in sorted(moment.nodes):
        node = moment.nodes[number]
        if not isinstance(node, Folder):
            continue
        found[number] = {}
        for name, was in sorted(node.entries.items()):
            chosen = was[choice.entry(len(was))] if len(was) > 1 else was[0]
            if chosen is not None:
                found[number][name] = chosen
            if was[0] is not None:
                durable.add(was[0])
            if was[-1] is not None:
                newest[was[-1]] = (number, name)
    linked: dict[int, list[tuple[int, str]]] = {}
    for folder, names in found.items():
        for name, inode in names.items():
            linked.setdefault(inode, []).append((folder, name))
    for inode in sorted(durable - linked.keys()):
        if inode in newest:  # renamed: one of its names is there
            folder, name = newest[inode]
            found[folder][name] = inode
    for inode, places in sorted(linked.items()):
        if isinstance(moment.nodes[inode], Folder):  # which has one name
            kept = newest[inode] if newest.get(inode) in places else places[0]
            for folder, name in places:
                if (folder, name) != kept:
                    del found[folder][name]
    return found


def _write(
    number: int,
    path: Path,
    nodes: Mapping[int, Node],
    names: Mapping[int, Mapping[str, int]],
    choice: Choice,
) -> None:
    node = nodes[number]
    if isinstance(node, Folder):
        path.mkdir()
        for name, inode in sorted(names[number].items()):
            _write(inode, path / name, nodes, names, choice)
    elif isinstance(node, Link):
        path.symlink_to(node.target)
    else:
        path.write_bytes(
            choice.content(node.versions) if len(node.versions) > 1 else node.versions[0]
        )
