"""Preference data: read it, check it, split it, write it.

| module | holds |
|---|---|
| formats | all formats by name, and which of them fits |
| columns | rows with a column each for prompt and answers: TRL, HH-RLHF, Orca, Alpaca, ... |
| labelled | rows with two answers and a label: PKU-SafeRLHF, HelpSteer, ... |
| verifiable | tasks with answers that can be verified: GSM8K, BBQ |
| transcripts | conversations that stand in one text: markers, templates' marks, JSON |
| official | the MACPO authors' released format, read and written |
| turns | what all formats share: turns, and the rules for a usable row |
| files, hub | rows out of local files and of hub data sets |
| constrained | prompts with constraints that can be checked, as `constraints:600` draws them |
| loading | a source to examples, with every skipped row accounted for |
| splits | teacher, student and test splits without a prompt in common |
| report | what is in a data set, for people |
| convert | from one format to another |
"""

from __future__ import annotations

from macpo.data.columns import parse_hh
from macpo.data.convert import Conversion, convert_data, render_conversion, write_trl
from macpo.data.formats import (
    FORMATS,
    detect_format,
    get_parser,
    parse_trl,
)
from macpo.data.labelled import parse_pku
from macpo.data.loading import (
    LoadedData,
    LoadReport,
    SkippedRows,
    SourceOptions,
    load_preferences,
    source_digest,
)
from macpo.data.official import official_row, official_rows, parse_macpo, write_official
from macpo.data.report import DataReport, Lengths, check_data, describe, render
from macpo.data.splits import DataSplits, split_examples
from macpo.data.turns import BadRow
from macpo.words import FormatName

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
    "SourceOptions",
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
