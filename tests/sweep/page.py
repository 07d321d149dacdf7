"""docs/models.md: what the sweep found, as a page."""

from __future__ import annotations


def write_page(verdicts) -> None:
    pass
