"""A language model as a judge: which of two answers to a prompt is better.

| module | what |
|---|---|
| comparison | two answers in an order, what is made of both orders, and the rules |
| wording | what the judge is told, and reading its verdict |
| endpoint | one request to an OpenAI-compatible server, with patience |
| replies | what was paid for, kept in the store |
| asking | all requests of a stage, some at a time |
| evaluator | the options, and the stage |

`prompts/` holds what shipped judges are told to look at.
"""
