"""A folder of data files as one source: the shards of a data set, as the hub and others lay it out.

    pairs/train-00000-of-00002.parquet, pairs/train-00001-of-00002.parquet, pairs/test-….parquet
    pairs/data/train-….parquet              a clone of a hub data set
    pairs/train/0000.parquet, pairs/test/0000.parquet
    pairs/part-0.jsonl, pairs/part-1.jsonl  no splits: all of it

Files are joined in the order of their names. Which of them belong together is said by their names
alone; where those leave a choice, nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from macpo.data.files import SUFFIXES, open_file
from macpo.data.rows import RawRow, RowSource
from macpo.errors import DataError
from macpo.seeds import digest, file_digest

METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
SPLIT_WORDS = ("train", "training", "validation", "valid", "val", "dev", "test", "eval")
SHARD = re.compile(r"[-_.]?(?P<number>\d+)(?:[-_]of[-_](?P<count>\d+))?\Z")


def is_shard_folder(path: Path) -> bool:
    """Say whether `path` is a folder in which data files are found."""
    return path.is_dir() and bool(_files(path))


def open_shards(path: Path, split: str) -> RowSource:
    """Open the files of a split as one source; rows are counted through all of them.

    Raises:
        DataError: as `choose`, or a file cannot be read.
    """
    files = choose(path, split)
    what = "1 file" if len(files) == 1 else f"{len(files)} files"
    return RowSource(f"{path} ({split}, {what})", "row", _rows(files))


def shards_digest(path: Path, split: str) -> str:
    """Return a digest of the files of a split: of their bytes, in their order.

    Raises:
        DataError: as `choose`, or a file cannot be read.
    """
    try:
        return digest(["shards", *(file_digest(file) for file in choose(path, split))])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def choose(path: Path, split: str) -> list[Path]:
    """Return the files of a folder that hold a split, sorted.

    Files without the name of a split in theirs are all there is, and count as `train`.

    Raises:
        DataError: there is no such split, several that may be meant, a shard is missing, or files
            of several kinds lie side by side.
    """
    groups: dict[str, list[Path]] = {}
    for file in _files(path):
        groups.setdefault(_group(file, path), []).append(file)
    named = {name: files for name, files in groups.items() if _words(name) & set(SPLIT_WORDS)}
    remedy = f"set data.hub_split to one of: {', '.join(sorted(named))}"
    if not named:
        if split != "train":
            raise DataError(f"{path}: has no splits, so data.hub_split has no effect; remove it")
        if len(groups) > 1:
            raise DataError(
                f"{path}: holds files of several names ({', '.join(sorted(groups))}) and none of a "
                "split; name one file, or put the shards of one data set into a folder of their own"
            )
        [files] = groups.values()
        return _check_shards(path, files)
    if split in named:
        return _check_shards(path, named[split])
    meant = sorted(name for name in named if split in _words(name))
    if len(meant) == 1:
        return _check_shards(path, named[meant[0]])
    if meant:
        raise DataError(f"{path}: split {split!r} may be {' or '.join(meant)}; {remedy}")
    raise DataError(f"{path}: has no split {split!r}; {remedy}")


def _files(path: Path) -> list[Path]:
    """Return the data files of a folder, else of its folder `data` or of those named as splits."""
    inside = [folder for folder in path.iterdir() if folder.is_dir()]
    splits = [folder for folder in inside if _words(folder.name) & set(SPLIT_WORDS)]
    for folders in ([path], [f for f in inside if f.name == "data"], splits):
        files = [f for folder in folders for f in folder.iterdir() if _is_data(f)]
        if files:
            return sorted(files)
    return []


def _is_data(file: Path) -> bool:
    return file.is_file() and file.name.endswith(SUFFIXES) and file.name not in METADATA


def _group(file: Path, folder: Path) -> str:
    """Return what the shards of one split have in common in their names."""
    parent = file.parent.name if file.parent.parent == folder and file.parent.name != "data" else ""
    return parent or SHARD.sub("", _stem(file))


def _stem(file: Path) -> str:
    """Return a file's name without what says its kind."""
    return file.name.removesuffix(_kind(file))


def _kind(file: Path) -> str:
    """Return the longest suffix that names the kind of a file, `.jsonl.gz` before `.gz`."""
    return max((s for s in SUFFIXES if file.name.endswith(s)), key=len)


def _words(name: str) -> set[str]:
    return set(re.split(r"[^a-z]+", name.lower()))


def _check_shards(path: Path, files: Sequence[Path]) -> list[Path]:
    """Check that nothing is missing and nothing there twice."""
    kinds = sorted({_kind(file) for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{path}: holds files of several kinds ({', '.join(kinds)}), which may be the same "
            f"rows; name one file, such as {files[0]}"
        )
    numbered = [match for file in files if (match := SHARD.search(_stem(file)))]
    counts = {match["count"] for match in numbered if match["count"]}
    for count in sorted(counts):
        have = sum(match["count"] == count for match in numbered)
        if have != int(count):
            raise DataError(
                f"{path}: holds {have} of {int(count)} shards ({files[0].name}, …); fetch the "
                "others, or name one file"
            )
    return list(files)


def _rows(files: Sequence[Path]) -> Iterator[RawRow]:
    """Yield the rows of all files, one file open at a time."""
    before = 0
    for file in files:
        number = 0
        for row in open_file(str(file)).rows:
            number = row.number
            yield RawRow(before + number, row.value, row.bad)
        before += number
