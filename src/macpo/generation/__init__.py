"""Answers: one protocol, and the backends behind it."""
