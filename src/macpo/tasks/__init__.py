"""Tasks whose answers can be verified by rule: what is right, what is met, what is biased.

| module | holds |
|---|---|
| numbers | the final number of a worked answer (GSM8K) |
| bbq | questions with three options, and the bias scores of BBQ |
| constraints | constraints on an answer's form, in words that are read back, and their checks |
| writing | prompts with such constraints, and answers that meet or violate them |

Pure functions on texts: what reads data is in `macpo.data`, what measures policies in
`macpo.evaluation`.
"""
