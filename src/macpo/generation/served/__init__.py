"""Answers that an engine of its own makes: vLLM in another process, or a server.

Token ids go in and come out. Whose answers they are is not taken on trust: every stage compares
the first ones with what macpo's own engine makes of them (`canary`).
"""
