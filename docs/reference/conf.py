"""Sphinx: the pages of docs/ and the API reference, one site. `make docs` builds it.

The source folder is the repository's root, so that links between pages, README and examples are
the same here as where the repository is browsed. Docstrings are plain prose with `code` in single
backticks and indented examples; `restructure` writes them the way Sphinx reads. Sections of the
config get a table of their keys.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from macpo import __version__

project = "macpo"
author = "The macpo developers"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/reference/index"
include_patterns = [
    "*.md",
    "docs/**.md",
    "docs/**.rst",
    "bench/*.md",
    "examples/**.md",
]
default_role = "code"
highlight_language = "none"
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"macpo {__version__}"
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "exclude-members": "model_config"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

WORDS = {
    "Count": "a whole number above 0",
    "CountOrZero": "a whole number, 0 or more",
    "Count | None": "a whole number above 0",
    "Positive": "a number above 0",
    "NonNegative": "a number, 0 or more",
    "Ratio": "a number from 0 to below 1",
    "Flag": "true or false",
    "Text": "text",
    "Text | None": "text",
    "Prose": "text, of several lines if need be",
    "Prose | None": "text, of several lines if need be",
    "Size": "a number of prompts, or a fraction of all such as 0.5",
    "Loss": "`'sigmoid', 'ipo', 'ipo-mean', 'sppo', 'apo-zero', 'apo-down'`",
    "tuple[Text, ...]": "a list of texts",
    "Annotated[tuple[TeacherConfig, ...], Field(min_length=1)]": "a list of `TeacherConfig`",
    "SerializeAsAny[MethodConfig]": "a method's name, or a section with it and its options",
    "tuple[SerializeAsAny[EvaluatorConfig], ...] | None": "a list of names or sections",
}
"""What the kinds of values in `macpo.config.values` mean; others stand as in the source."""

SECTIONS = ("Args:", "Returns:", "Raises:", "Attributes:", "Yields:")
SPECIAL = re.compile(r"(`[^`]*`)|([*|\\])|(?<=\w)(_)(?!\w)")


def escape(line: str) -> str:
    """Take their meaning from characters that are plain text in our docstrings."""
    return SPECIAL.sub(lambda match: match[1] or "\\" + (match[2] or match[3]), line)


def restructure(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText: indented blocks become literal ones."""
    result: list[str] = []
    in_section = in_block = False
    for number, line in enumerate(lines):
        after_blank = number > 0 and not lines[number - 1].strip()
        if line.strip() in SECTIONS:
            in_section, in_block = True, False
        elif line.strip() and not line.startswith(" "):
            in_section = in_block = False
        elif line.startswith("    ") and after_blank and not (in_section or in_block):
            in_block = True
            result += ["::", ""]
        result.append(line if in_block else escape(line))
    return result


def is_section(obj: Any) -> bool:
    """Tell whether something is a section of the config."""
    return inspect.isclass(obj) and issubclass(obj, BaseModel)


def key_table(section: type[BaseModel]) -> Iterator[str]:
    """Yield a table of a section's keys: what each takes, as the source has it, and its default."""
    yield from ("", ".. list-table::", "   :header-rows: 1", "")
    yield from ("   * - key", "     - takes", "     - default")
    annotations = {
        name: text
        for base in reversed(section.__mro__)
        for name, text in inspect.get_annotations(base).items()
    }
    for name, field in section.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        yield f"   * - `{name}`"
        yield f"     - {words_for(str(annotations[name]))}"
        yield f"     - {'required' if field.is_required() else default_of(default)}"
    yield ""


def words_for(annotation: str) -> str:
    """Say what a key of that annotation takes."""
    if annotation in WORDS:
        return WORDS[annotation]
    takes = re.sub(r"^Literal\[(.*)\]$", r"\1", annotation)
    bounded = re.fullmatch(r"Annotated\[(.*), Field\((.*)\)\]", takes)
    if bounded:
        return f"`{bounded[1]}`, {bounded[2].replace('_', ' ')}"
    if re.fullmatch(r"\w+Config( \| None)?", takes):
        return f"a section: `{takes.removesuffix(' | None')}`"
    return f"`{takes}`"


def default_of(value: Any) -> str:
    """Write a default as a config would."""
    if isinstance(value, BaseModel):
        name = getattr(value, "name", None)
        return f"`{name}`" if name else "its own defaults"
    text = " ".join(str(value).split())
    if value is None or len(text) > 60:
        return "none" if value is None else f"`{text[:59]}…`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def process_docstring(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Rewrite a docstring in place, before napoleon reads its sections."""
    lines[:] = restructure(lines)
    if is_section(obj) and obj.model_fields:
        lines += key_table(obj)


def process_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Leave out the signature of a section: the table of its keys says it better."""
    return ("", "") if is_section(obj) else None


def setup(app: Any) -> None:
    """Register the rewriting of docstrings; a small priority number comes first."""
    app.connect("autodoc-process-docstring", process_docstring, priority=100)
    app.connect("autodoc-process-signature", process_signature)
