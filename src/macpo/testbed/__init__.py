"""A small controlled world: prompts, answers of known worth, an oracle, and bases to align.

examples = preference_examples(2000, seed=0)                 # preference data
build_base("strong", folder)                                 # an unaligned base, from scratch
verdict = judge(examples[0].prompt, "Hello! It is 7.")        # scores any text, says why
summarise([judge(p, a) for p, a in answers]).to_json()       # each kind of behaviour apart
"""

from macpo.testbed.bases import PRESETS, base_digest, build_base
from macpo.testbed.corpus import (
    BAD_SYSTEM,
    GOOD_SYSTEM,
    RATING,
    RATINGS,
    instructed,
    rating_prompt,
)
from macpo.testbed.dataset import WORLD_VERSION, dataset_digest, preference_examples
from macpo.testbed.oracle import Verdict, judge
from macpo.testbed.summary import Summary, summarise

__all__ = [
    "BAD_SYSTEM",
    "GOOD_SYSTEM",
    "PRESETS",
    "RATING",
    "RATINGS",
    "WORLD_VERSION",
    "Summary",
    "Verdict",
    "base_digest",
    "build_base",
    "dataset_digest",
    "instructed",
    "judge",
    "preference_examples",
    "rating_prompt",
    "summarise",
]
