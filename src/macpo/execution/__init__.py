"""Executors: they take a plan and make its stages true; `protocol` says what one must keep to."""
