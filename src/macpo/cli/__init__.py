"""The command line: one file per sub-command, each a thin shell over a library function."""

from macpo.cli.main import app, main

__all__ = ["app", "main"]
