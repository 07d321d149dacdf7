"""Preference data: read it, check it, split it, write it.

| module | holds |
|---|---|
| formats | one parser per format: HH-RLHF, PKU-SafeRLHF, MACPO's released JSON, TRL |
| official | the MACPO authors' released format, read and written |
| turns | what all formats share: turns, and the rules for a usable row |
| files, hub | rows out of local files and of hub data sets |
| loading | a source to examples, with every skipped row accounted for |
| splits | teacher, student and test splits without a prompt in common |
| report | what is in a data set, for people |
| convert | from one format to another |
"""

from __future__ import annotations

from macpo.data.convert import Conversion, convert_data, render_conversion, write_trl
from macpo.data.formats import (
    FORMATS,
    FormatName,
    detect_format,
    get_parser,
    parse_hh,
    parse_pku,
    parse_trl,
)
from macpo.data.loading import (
    LoadedData,
    LoadReport,
    SkippedRows,
    load_preferences,
    source_digest,
)
from macpo.data.official import official_row, official_rows, parse_macpo, write_official
from macpo.data.report import DataReport, Lengths, check_data, describe, render
from macpo.data.splits import DataSplits, split_examples
from macpo.data.turns import BadRow

__all__ = [
    "FORMATS",
    "BadRow",
    "Conversion",
    "DataReport",
    "DataSplits",
    "FormatName",
    "Lengths",
    "LoadReport",
    "LoadedData",
    "SkippedRows",
    "check_data",
    "convert_data",
    "describe",
    "detect_format",
    "get_parser",
    "load_preferences",
    "official_row",
    "official_rows",
    "parse_hh",
    "parse_macpo",
    "parse_pku",
    "parse_trl",
    "render",
    "render_conversion",
    "source_digest",
    "split_examples",
    "write_official",
    "write_trl",
]
