"""Rows out of a data set on the Hugging Face hub, through `datasets`, which is imported only here.

A data set is resolved to one revision; its digest names that revision. Downloaded data sets are
found again without a network, where `datasets` has them in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from macpo.data.rows import RawRow, RowSource
from macpo.errors import DataError
from macpo.seeds import digest

if TYPE_CHECKING:
    from macpo.config import DataConfig


def open_hub(config: DataConfig) -> RowSource:
    """Download (once) and open the data set that `config` names.

    `hub_config` is one of the data set's configurations, or else a folder in it: HH-RLHF has
    folders such as `harmless-base`, no configurations.

    Raises:
        DataError: it cannot be had.
    """
    with _loading(config):
        builder = _builder(config)
        builder.download_and_prepare()
        splits = sorted(builder.info.splits or {})
        if config.hub_split not in splits:
            raise DataError(
                f"{config.source}: has no split {config.hub_split!r}; "
                f"set data.hub_split to one of: {', '.join(splits)}"
            )
        table = builder.as_dataset(split=config.hub_split)
    rows = (RawRow(number, row) for number, row in enumerate(table, 1))
    return RowSource(f"{config.source} ({config.hub_split})", "row", rows, len(table))


def hub_digest(config: DataConfig) -> str:
    """Return a digest of the data set's resolved revision and of what is taken from it.

    Raises:
        DataError: it cannot be resolved.
    """
    with _loading(config):
        revision = str(_builder(config).hash)
    return digest(["hub", config.source, config.hub_config, config.hub_split, revision])


def _builder(config: DataConfig) -> Any:
    """Resolve the data set without downloading its rows."""
    import datasets

    name, revision = config.hub_config, config.hub_revision
    if name is None:
        return datasets.load_dataset_builder(config.source, revision=revision)
    if name in datasets.get_dataset_config_names(config.source, revision=revision):
        return datasets.load_dataset_builder(config.source, name, revision=revision)
    return datasets.load_dataset_builder(config.source, data_dir=name, revision=revision)


@contextmanager
def _loading(config: DataConfig) -> Iterator[None]:
    """Turn whatever loading raises into one line.

    `datasets`, `huggingface_hub` and `httpx` have no common base class, hence the broad clause.
    """
    try:
        yield
    except DataError:
        raise
    except ImportError as error:
        raise DataError(
            f"{config.source}: is no local file, and the hub needs the package datasets "
            f"({error}); pip install datasets, or give a .jsonl file"
        ) from error
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{config.source}: is no local file, and was not had from the hub ({what[:300]}); "
            "check the name and data.hub_config, or download it where there is a network and give "
            "the file"
        ) from error
