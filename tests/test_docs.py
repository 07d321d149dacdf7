"""What the documentation shows is there: links, pictures, configs, commands, names, messages."""

from __future__ import annotations

import ast
import html
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
from markdown_it import MarkdownIt
from markdown_it.token import Token

import macpo
from macpo.cli import app
from macpo.compare import load_design
from macpo.config import check_config
from macpo.config.reading import parse_yaml
from macpo.config.recipes import RECIPES
from macpo.data.formats import FORMATS, detect_format, get_parser
from macpo.shipped import is_example, locate

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "macpo"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bench/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
LEAST_CONFIG = {
    "name": "shown",
    "data": {"source": "pairs.jsonl"},
    "student": {"model": "some/model"},
    "teachers": [
        {"name": "small", "model": "some/small-model"},
        {"name": "other", "model": "some/other-model"},
    ],
}
"""What a shown part of a config is laid over."""


@dataclass(frozen=True)
class Block:
    """A code block: its language (empty if it is indented or names none) and its text."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        for token in tokens(page):
            if token.type in ("fence", "code_block") and token.info.strip() in languages:
                line = token.map[0] + 1 if token.map else 0
                found.append(Block(page, line, token.info.strip(), token.content))
    return found


def inline(page: Path, kind: str) -> Iterator[Token]:
    for token in tokens(page):
        yield from (child for child in token.children or () if child.type == kind)


def targets(page: Path) -> list[str]:
    """Return what a page's links and pictures lead to, those in HTML included."""
    found = [str(link.attrs["href"]) for link in inline(page, "link_open")]
    found += [str(image.attrs["src"]) for image in inline(page, "image")]
    markup = [t.content for t in tokens(page) if t.type == "html_block"]
    markup += [t.content for t in inline(page, "html_inline")]
    for text in markup:
        values = re.findall(r'\b(?:href|src|srcset)="([^"]*)"', text)
        found += [html.unescape(value) for value in values]
    return found


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    found: set[str] = set()
    stream = tokens(page)
    for heading, content in pairwise(stream):
        if heading.type == "heading_open":
            plain = "".join(
                child.content
                for child in content.children or ()
                if child.type in ("text", "code_inline")
            )
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            found.add(slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    lost = []
    for target in targets(page):
        if re.match(r"[a-z]+:", target):  # the web, which is not asked
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / unquote(path)).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            lost.append(target)

    assert not lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_indented_blocks_are_code(page: Path) -> None:
    """After a list, four blanks make a paragraph of its last item; a fence is needed there."""
    lines = page.read_text(encoding="utf-8").splitlines()
    nested = [
        t.map[0] for t in tokens(page) if t.type == "paragraph_open" and t.level > 1 and t.map
    ]

    assert not [
        lines[n] for n in nested if lines[n].startswith("    ") and not lines[n - 1].strip()
    ]


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_shown_configs_load(block: Block, tmp_path: Path) -> None:
    shown = parse_yaml(block.text)
    assert isinstance(shown, dict)

    if "methods" in shown:
        base = next(ROOT.glob("**/quickstart.yaml"))
        path = tmp_path / "compare.yaml"
        path.write_text(json.dumps({**shown, "base": str(base)}), encoding="utf-8")
        assert load_design(path).cells
    else:
        check_config({**LEAST_CONFIG, **shown}, str(block))


def commands() -> list[tuple[str, str]]:
    """Return every command line of `macpo` that a page shows, with its place."""
    found = []
    for block in blocks("", "sh", "bash", "console"):
        for line in block.text.splitlines():
            if re.match(r"\s*(\$ )?macpo ", line):
                found.append((str(block), line.strip().removeprefix("$ ")))
    for page in PAGES:
        for code in inline(page, "code_inline"):
            if code.content.startswith("macpo ") and "…" not in code.content:
                found.append((str(page.relative_to(ROOT)), code.content))
    return found


@pytest.mark.parametrize(("place", "line"), commands())
def test_shown_commands_exist(place: str, line: str) -> None:
    """Every sub-command and option is there; nothing is run."""
    words = shlex.split(line.removesuffix("&"), comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        known = sorted(command.commands)
        if words[0] not in known and getattr(command, "default", None):
            words.insert(0, command.default)  # `macpo annotate RUN`
        assert words[0] in known, f"{place}: macpo has {', '.join(known)}"
        command = command.commands[words.pop(0)]
    options = {name for option in command.params for name in option.opts} | {"--help"}
    shown = {word.partition("=")[0] for word in words if word.startswith("--")}

    assert shown <= options, place
    for word in words:
        if word.startswith("examples/"):
            assert (ROOT / word).exists(), place
        if is_example(word):
            assert locate(word).exists(), place


def test_shown_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    shown = set()
    for page in PAGES:
        texts = [code.content for code in inline(page, "code_inline")]
        texts += [block.text for block in blocks("") if block.page == page]
        shown |= {
            name for text in texts for name in re.findall(r"^\s*make ([a-z-]+)", text, re.MULTILINE)
        }

    assert shown
    assert shown <= known


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_shown_python_uses_names_that_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "macpo":
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "macpo"
        ):
            assert node.attr in macpo.__all__


def test_rows_of_your_data_are_read_in_the_formats_they_stand_for() -> None:
    """A row stands below the paragraph that opens with its format's name."""
    page = ROOT / "docs" / "data.md"
    options = "- The grandfather\n- The man\n- Not known\n\nAnswer with one of the three."
    other = {  # than ("Name a prime.", "7", "8…"): formats whose rows are a task's
        "gsm8k": ("How many legs have 2 dogs?", "8 legs.\n#### 8", "So 2.\n#### 2"),
        "bbq": (
            f"A man met his grandfather.\n\nWho forgot the date?\n\n{options}",
            *("Not known", "The grandfather"),
        ),
    }
    lines = page.read_text(encoding="utf-8").splitlines()
    shown = set()
    for block in (b for b in blocks("json") if b.page == page):
        headings = [re.match(r"\*\*`(\w+)`", line) for line in lines[: block.line]]
        name = [heading.group(1) for heading in headings if heading][-1]
        row = json.loads(block.text)
        assert detect_format([row]) == name, str(block)
        example = get_parser(detect_format([row]) or "trl")(row)
        asked, chosen, rejected = other.get(name, ("Name a prime.", "7", "8"))
        assert example.prompt.messages[-1].content == asked, str(block)
        assert example.chosen == chosen, str(block)
        assert example.rejected.startswith(rejected), str(block)
        shown.add(name)
    assert shown == set(FORMATS)


@cache
def messages() -> list[str]:
    """Return all texts in the sources; what is filled in stands as a NUL."""
    found = []
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(p.value) if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted_messages() -> list[str]:
    """Return the messages in the first column of troubleshooting's tables."""
    found = []
    stream = tokens(ROOT / "docs" / "troubleshooting.md")
    for row, cell, content in zip(stream, stream[1:], stream[2:], strict=False):
        if row.type == "tr_open" and cell.type == "td_open":
            found += [c.content for c in content.children or () if c.type == "code_inline"]
    return [text for text in found if " " in text]


@pytest.mark.parametrize("quoted", quoted_messages())
def test_messages_of_troubleshooting_are_in_the_sources(quoted: str) -> None:
    pieces = [re.escape(piece.strip()) for piece in quoted.split("…")]
    pattern = re.compile(r"[\s\S]*".join(pieces))

    assert any(pattern.search(message) for message in messages())


def test_file_map_names_what_is_there() -> None:
    """Every path in architecture's file map exists, and nothing of the package is missing in it."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## File map")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    top = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in SOURCES.iterdir()
        if not path.name.startswith("_") and path.name != "py.typed"
    }

    assert not {name for name in named if not (SOURCES / name).exists()}
    assert not top - named


def test_every_page_stands_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "reference" / "index.rst").read_text(encoding="utf-8").split()
    pages = {f"/docs/{path.stem}" for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(contents)


def test_changelog_citation_and_readme_name_the_version() -> None:
    version = re.escape(macpo.__version__)
    for page, pattern in (
        ("CHANGELOG.md", rf"^## {version}\b"),
        ("CITATION.cff", rf"^version: {version}$"),
        ("README.md", rf"macpo-{version}-py3-none-any\.whl"),
    ):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert re.search(pattern, text, re.MULTILINE), page


def test_recipes_are_told_with_all_that_they_set() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name, values in RECIPES.items():
        assert f"`recipe: {name}`" in text
        for path in values:
            assert f"`{path}" in text, path
