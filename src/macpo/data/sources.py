"""Where rows come from: files, the hub, and schemes such as `testbed:1500` that plugins add.

find_source("pairs.jsonl").open(config)
DATA_SCHEMES.register("mine", MySource())      # data.source: mine:...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from macpo.data.files import is_local, local_digest, open_file
from macpo.data.hub import hub_digest, open_hub
from macpo.data.rows import RowSource
from macpo.data.shards import is_shard_folder, open_shards, shards_digest
from macpo.data.tables import is_saved_folder, open_saved, saved_digest
from macpo.errors import DataError
from macpo.paths import user_path
from macpo.registry import Registry
from macpo.shipped import locate

if TYPE_CHECKING:
    from macpo.config import DataConfig

HUB_OPTIONS = ("hub_config", "hub_revision", "hub_split")


class DataSource(Protocol):
    """A kind of places where rows are.

    Attributes:
        what: it is, in errors, before its name.
        unused: keys of the data section without effect on it.
    """

    what: str
    unused: tuple[str, ...]

    def open(self, config: DataConfig) -> RowSource:
        """Open the rows that the config names.

        Raises:
            DataError: they cannot be had.
        """
        ...

    def digest(self, config: DataConfig) -> str:
        """Return a digest of the content, for stage keys, without parsing it.

        Raises:
            DataError: the source cannot be read or resolved.
        """
        ...

    def is_here(self, config: DataConfig) -> bool:
        """Tell whether the rows can be had on this machine at once, without a download."""
        ...


class LocalFile:
    """A file on this machine."""

    what = "the local file"
    unused: tuple[str, ...] = HUB_OPTIONS

    def open(self, config: DataConfig) -> RowSource:
        """See `DataSource.open`."""
        return open_file(config.source)

    def digest(self, config: DataConfig) -> str:
        """See `DataSource.digest`: the SHA-256 of its bytes, wherever it lies."""
        return local_digest(config.source)

    def is_here(self, config: DataConfig) -> bool:
        """See `DataSource.is_here`."""
        return user_path(locate(config.source)).exists()


class SavedFolder:
    """A folder that `datasets` saved, of one split or several."""

    what = "the saved data set"
    unused: tuple[str, ...] = ("hub_config", "hub_revision")

    def open(self, config: DataConfig) -> RowSource:
        """See `DataSource.open`."""
        return open_saved(user_path(config.source), config.hub_split)

    def digest(self, config: DataConfig) -> str:
        """See `DataSource.digest`: of the bytes of its tables, wherever it lies."""
        return saved_digest(user_path(config.source), config.hub_split)

    def is_here(self, config: DataConfig) -> bool:
        """See `DataSource.is_here`."""
        return True


class ShardFolder:
    """A folder of data files, of one split or several."""

    what = "the folder"
    unused: tuple[str, ...] = ("hub_config", "hub_revision")

    def open(self, config: DataConfig) -> RowSource:
        """See `DataSource.open`."""
        return open_shards(user_path(config.source), config.hub_split)

    def digest(self, config: DataConfig) -> str:
        """See `DataSource.digest`: of the bytes of its files, wherever they lie."""
        return shards_digest(user_path(config.source), config.hub_split)

    def is_here(self, config: DataConfig) -> bool:
        """See `DataSource.is_here`."""
        return True


class Hub:
    """A data set on the Hugging Face hub."""

    what = "the data set"
    unused: tuple[str, ...] = ()

    def open(self, config: DataConfig) -> RowSource:
        """See `DataSource.open`."""
        return open_hub(config)

    def digest(self, config: DataConfig) -> str:
        """See `DataSource.digest`: of its revision, configuration and split."""
        return hub_digest(config)

    def is_here(self, config: DataConfig) -> bool:
        """See `DataSource.is_here`."""
        return False  # it may be in the cache, but to find out can take a download


DATA_SCHEMES: Registry[DataSource] = Registry(
    "data scheme",
    dict.fromkeys(("constraints", "short-constraints"), "macpo.data.constrained"),
)
"""Sources by what stands before the colon in `data.source`."""


def find_source(source: str) -> DataSource:
    """Return the source that `data.source` means."""
    scheme, colon, _ = source.partition(":")
    found = DATA_SCHEMES.find(scheme) if colon else None
    if found is not None:
        return found
    path = user_path(source)
    if is_saved_folder(path):
        return SavedFolder()
    if is_shard_folder(path):
        return ShardFolder()
    return LocalFile() if is_local(source) else Hub()


def refuse_unused(source: DataSource, config: DataConfig) -> None:
    """Refuse what the data section says but this source would ignore.

    Raises:
        DataError: there is such a key.
    """
    for option in source.unused:
        if getattr(config, option) != type(config).model_fields[option].default:
            raise DataError(
                f"data.{option}: has no effect on {source.what} {config.source}; remove it"
            )
