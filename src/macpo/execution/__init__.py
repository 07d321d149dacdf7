"""Executors: they take a plan and make its stages true."""
