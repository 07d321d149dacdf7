"""The world's tokenizer: a small byte-level BPE trained on the world's own text, with ChatML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from macpo.testbed.corpus import draw_conversation
from macpo.testbed.dataset import WORLD_VERSION
from macpo.testbed.dice import Dice
from macpo.testbed.prompts import MIX

if TYPE_CHECKING:
    from macpo.testbed.corpus import Conversation

VOCABULARY = 704
"""Rows of the embedding: large enough that every word of the world is one token."""

TOKENS = 697
"""Tokens that the merges come to (256 of them are the bytes); the rows beyond never occur in the
corpus, so a base learns never to write them."""

TRAINED_ON = 4000
"""Conversations that the merges are learned from."""

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer() -> Any:
    """Return the tokenizer, a transformers `PreTrainedTokenizerFast`; always the same one.

    It is lossless for any text. Pad and end of turn are different tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=TEMPLATE, eos_token=END, pad_token=PAD
    )


def render_parts(conversation: Conversation) -> list[tuple[str, bool]]:
    """Return a conversation as the template writes it, in parts: text, and whether it is learned.

    An answer is a part of its own, with the end of turn and the line break behind it; the parts
    meet where the chat code starts an answer.
    """
    parts: list[tuple[str, bool]] = []
    before = ""
    for i, message in enumerate(conversation.messages):
        if message.role == "assistant" and i >= conversation.learned:
            parts.append((f"{before}{START}assistant\n", False))
            parts.append((f"{message.content}{END}\n", True))
            before = ""
        else:
            before += f"{START}{message.role}\n{message.content}{END}\n"
    return parts


def _texts() -> Iterator[str]:
    """Yield what conversations are made of, without the special tokens."""
    dice = Dice("testbed", WORLD_VERSION, "tokenizer")
    for _ in range(TRAINED_ON):
        conversation = draw_conversation(dice, MIX)
        for message in conversation.messages:
            yield f"{message.role}\n{message.content}"
