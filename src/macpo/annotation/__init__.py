"""People's blind judgments of two policies' answers: a local page, its file, and what comes of it.

    pairs.py        which answers are laid side by side
    judgments.py    the file that keeps what was judged (SQLite)
    server.py       the page's own small server
    results.py      win rates and agreement
    agreement.py    Krippendorff's alpha, Cohen's and Fleiss' kappa
    exporting.py    judgments as rows, and as preference pairs

Nothing here needs a model library.
"""
