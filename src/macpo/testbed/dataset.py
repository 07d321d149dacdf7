"""Preference data of the world: prompts, each with a good answer and a bad one.

    examples = preference_examples(2000, seed=0)
    write_jsonl(path, (example.to_json() for example in examples))    # TRL's conversational format

All prompts differ. Row i depends on the seed and on the rows before it alone: a longer data set
starts with the shorter one. Chosen and rejected are draws, so that a rejected answer is sometimes
the better one, as in any preference data.
"""

from __future__ import annotations

from macpo.errors import ConfigError
from macpo.records import Message, PreferenceExample, Prompt
from macpo.seeds import digest
from macpo.testbed.answers import BAD, GOOD, draw_answer, plain_answer
from macpo.testbed.dice import Dice
from macpo.testbed.prompts import (
    EARLIER_TURNS,
    MIX,
    SAFE_FAMILIES,
    FamilyName,
    Task,
    draw_task,
    question,
    task_of_level,
)

WORLD_VERSION = 1
"""Raise it whenever the same seed comes to mean other prompts, answers or scores."""

MOST_EXAMPLES = 5_000
"""The easiest levels have a hundred different prompts or so: the longer the data, the fewer of its
prompts are easy and the more follow an earlier turn. Up to here, families keep their shares to .05.
"""


def preference_examples(count: int, seed: int) -> list[PreferenceExample]:
    """Draw preference data with `count` different prompts.

    Raises:
        ConfigError: `count` is not from 1 to `MOST_EXAMPLES`.
    """
    if not 1 <= count <= MOST_EXAMPLES:
        raise ConfigError(
            f"the testbed was asked for {count:,} prompts; ask for 1 to {MOST_EXAMPLES:,}"
        )
    examples: list[PreferenceExample] = []
    seen: set[Prompt] = set()
    dice = Dice("testbed", WORLD_VERSION, "preferences", seed)
    while len(examples) < count:
        task = draw_task(dice)
        prompt = draw_prompt(dice, task)
        chosen, rejected = draw_answer(dice, task, GOOD), draw_answer(dice, task, BAD)
        if prompt not in seen and chosen != rejected:
            seen.add(prompt)
            examples.append(PreferenceExample(prompt, chosen, rejected))
    return examples


def draw_prompt(dice: Dice, task: Task) -> Prompt:
    """Render a task as a conversation, some with an earlier easy question and its plain answer."""
    messages: tuple[Message, ...] = ()
    if dice.chance(EARLIER_TURNS):
        family: FamilyName = dice.pick(SAFE_FAMILIES)
        earlier = task_of_level(dice, family, 1)
        answer = Message("assistant", plain_answer(dice, earlier))
        messages = (question(dice, earlier), answer)
    return Prompt((*messages, question(dice, task)))


def dataset_digest(count: int, seed: int) -> str:
    """Return a digest that stands for the data set without drawing it."""
    return digest(["testbed preferences", WORLD_VERSION, count, seed, MIX])
