"""What people's judgments of a run's answers come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from macpo.annotation.judgments import annotation_files
from macpo.annotation.results import Results, results_of
from macpo.report.text import plain_line
from macpo.run_directory import RunDir


def judged_sides(run: RunDir) -> Iterator[Results]:
    """Yield the results of each two sides of which anybody has judged answers, fit to be shown."""
    for path in annotation_files(run):
        found = results_of(path)
        if found.judgments:
            people = (replace(who, name=plain_line(who.name)) for who in found.annotators)
            yield replace(
                found,
                one=plain_line(found.one),
                other=plain_line(found.other),
                annotators=tuple(people),
            )
