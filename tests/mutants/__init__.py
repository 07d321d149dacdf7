"""Mutants: small faults put into the code on purpose, each of which some test must notice.

`mutations` names them; `python -m tests.mutants` (or `make mutants`) tries them all. pytest
collects nothing here; `tests/test_mutants.py` holds that every mutation still fits the code.
"""
