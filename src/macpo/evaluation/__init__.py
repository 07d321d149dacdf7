"""What is measured of every policy in every round, by evaluators that a config may list.

| module | evaluator |
|---|---|
| preference | preference accuracy and perplexity on held-out pairs |
| answers | length, repetition and copying of a policy's own answers |
| exact | answers that end with the right number |
| constraints | constraints of a prompt that its answer meets |
| bbq | accuracy and bias on questions with three options |
| judge | a language model compares answers |

`docs/own-evaluator.md` shows how to add one from outside.
"""

from macpo.evaluation.evaluator import Evaluator, Subject, register_evaluator

__all__ = ["Evaluator", "Subject", "register_evaluator"]
