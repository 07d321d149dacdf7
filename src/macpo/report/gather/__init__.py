"""Gathering what a report shows out of a run's folder.

    run.py            the order of things: `gather_run`
    finished.py       stages that are done, and where their artifacts are
    measurements.py   curves with intervals, and how the student changed
    filters.py        what learners kept of the answers offered
    people.py         what people's judgments come to
    work.py           training step by step, time, tokens, cost
    failures.py       what went wrong and was counted
    origin.py         how the run was made

Nothing is written and no model library is imported. What cannot be read is named in the report; it
does not keep the rest from being shown.
"""

from macpo.report.gather.run import gather_run

__all__ = ["gather_run"]
