"""Every error that macpo raises on purpose.

    MacpoError
    ├── ConfigError        a config or an option is wrong
    ├── DataError          a data set cannot be read, or has too many bad rows
    ├── ModelError         a model or tokenizer cannot be found, loaded or served
    │   └── SmallestBudgetError   memory has no room for the smallest part of the work
    ├── TrainingError      a stage had to stop (for example a NaN loss)
    ├── ClusterError       a cluster cannot be used, or loses stages
    ├── RanksError         one of several processes at the same work was lost
    │   └── RanksDifferError   they are not alike, and would not be if they began anew
    └── StoreError         the run directory cannot be used
        ├── RunLockedError     another process holds it
        ├── ClaimLostError     another process has taken over a stage
        └── DamagedError       an artifact does not match its checksums

A message is one line that says what happened, the value seen and what to do next: the command line
prints it as it stands, without a traceback.
"""

from __future__ import annotations


class MacpoError(Exception):
    """Base of all errors that are the user's to resolve."""


class ConfigError(MacpoError):
    """A config file or an option is wrong; the message lists every fault found."""


class DataError(MacpoError):
    """A data set cannot be read, is empty, or holds more bad rows than allowed."""


class ModelError(MacpoError):
    """A model or tokenizer cannot be found, loaded, or used for what was asked."""


class SmallestBudgetError(ModelError):
    """Memory has no room for the smallest part of the work; says what to lower."""


class TrainingError(MacpoError):
    """Training cannot go on, for example because the loss is not finite."""


class ClusterError(MacpoError):
    """A cluster cannot be used for a run, or its processes die with a stage again and again."""


class RanksError(MacpoError):
    """One of several processes at the same work was lost, did not start, or is not like others."""


class RanksDifferError(RanksError):
    """They find other files or compute differently, as they would again."""


class StoreError(MacpoError):
    """The run directory or the store in it cannot be used."""


class RunLockedError(StoreError):
    """Another process holds the run directory."""


class ClaimLostError(StoreError):
    """A stage was taken for given up, and another process runs it now."""


class DamagedError(StoreError):
    """An artifact's files do not match the checksums it was committed with."""

    @property
    def fault(self) -> str:
        """What is damaged and how, without the remedy, for who applies it anyway."""
        return str(self).rpartition("; ")[0] or str(self)
