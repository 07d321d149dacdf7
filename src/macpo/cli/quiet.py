"""Keeps what libraries say to developers away from those who run a command."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence transformers' bar for every loading of weights, and warnings of coming renames.

    Downloads from the hub keep their bars.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    loading_shown = logging.is_progress_bar_enabled()
    downloads_shown = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads_shown:  # the line above turned these off as well
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if loading_shown:
            logging.enable_progress_bar()
