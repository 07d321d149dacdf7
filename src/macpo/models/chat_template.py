"""A tokenizer's chat template: messages in, text out, and what it says of itself when it is tried.

    template = ChatTemplate(tokenizer, {"enable_thinking": False}, name="student")
    text = template.render(messages, prompt.id, answer_next=True)
    before, after = template.around_answer()

`models.chat` makes token ids of such texts; `models.rendering` keeps a template in bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from macpo.errors import DataError, ModelError
from macpo.models.rendering import TemplateError, bounded, refuse_powers
from macpo.models.templates import BUILT_IN
from macpo.records import Message

ANSWER = "macpo"
"""Stands for an assistant's answer when the template is looked at."""

# Llama 3's template and others write today's date into the prompt: yesterday's run could not be
# resumed. They get a fixed one, that of Llama 3.1's own default.
FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{ format"
    "|replace('%d', '26')|replace('%b', 'Jul')|replace('%B', 'July')|replace('%m', '07')"
    "|replace('%Y', '2024')|replace('%y', '24')|replace('%A', 'Friday')|replace('%a', 'Fri')"
    "|replace('%H', '00')|replace('%M', '00')|replace('%S', '00') }}{%- endmacro +%}"
)


class ChatTemplate:
    """Renders conversations as one tokenizer's template writes them.

    Attributes:
        source: the text of the template.
        name: of the model, for messages.

    Args:
        tokenizer: a transformers tokenizer.
        args: what the template is given beside the messages, such as `enable_thinking`.
        name: of the model.

    Raises:
        ModelError: the tokenizer has no template, or one that can take for ever.
    """

    def __init__(self, tokenizer: Any, args: Mapping[str, object], name: str) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                f"{name}: has no chat template of its own; set the model's chat_template to "
                f"{', '.join(BUILT_IN)} or a Jinja file"
            )
        self.source = str(tokenizer.get_chat_template())
        self.name = name
        self._tokenizer = tokenizer
        self._args = dict(args)
        try:
            refuse_powers(self.source)
        except TemplateError as error:
            raise ModelError(
                f"{name}: the chat template {error}, which can take for ever; set another "
                "chat_template"
            ) from None

    def render(self, messages: Sequence[Message], prompt_id: str, *, answer_next: bool) -> str:
        """Render a conversation.

        Args:
            messages: of it.
            prompt_id: for the error.
            answer_next: it ends with the start of the assistant's turn, else with an answer.

        Raises:
            DataError: the template refuses it.
        """
        try:
            return self._render(messages, answer_next=answer_next)
        except Exception as error:  # templates raise what they like, mostly jinja2 errors
            raise DataError(
                f"prompt {prompt_id}: the chat template of {self.name} refuses this conversation "
                f"({error})"
            ) from error

    @cached_property
    def example(self) -> str:
        """Two turns of a user with an answer between them, up to the next answer.

        Raises:
            ModelError: the template refuses it.
        """
        messages = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
        return self._probe(messages, answer_next=True)

    def around_answer(self) -> tuple[str, str]:
        """Return what the template writes between the start of a turn and the answer, and after it.

        Some write a blank (Vicuna's `ASSISTANT:` is followed by a space and the answer), some an
        empty thought or a channel, and those that know no start of a turn the whole header.

        Raises:
            ModelError: it leaves out answers, or starts a turn with what no answer has before it,
                such as a thought that is opened there and closed by nobody.
        """
        question = Message("user", "a")
        start = self._probe([question], answer_next=True)
        whole = self._probe([question, Message("assistant", ANSWER)], answer_next=False)
        head, found, after = whole.rpartition(ANSWER)
        if not found:
            raise ModelError("the chat template leaves out the assistant's answers; set another")
        if head.startswith(start):
            return head[len(start) :], after
        if head.rstrip() == start.rstrip():
            return "", after
        pairs = zip(start, head, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(start), len(head)))
        raise ModelError(
            f"{self.name}: the chat template starts the assistant's turn with "
            f"{start[common:][:40]!r} and writes {head[common:][:40]!r} before an answer of the "
            "data, so that it would be learnt in a place where no answer stands; set "
            "chat_template_args (such as enable_thinking: false) or another chat_template"
        )

    def writes_system(self) -> bool:
        """Say whether the template writes the text of a system turn."""
        messages = [Message("system", ANSWER), Message("user", "a")]
        try:
            return ANSWER in self._render(messages, answer_next=True)
        except Exception:  # as above
            return False

    def _render(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """Render messages with transformers' sandboxed template engine, in bounds."""
        dated = FIXED_DATE + self.source if "strftime_now" in self.source else self.source

        def render() -> str:
            return str(
                self._tokenizer.apply_chat_template(
                    [message.to_json() for message in messages],
                    chat_template=dated,
                    tokenize=False,
                    add_generation_prompt=answer_next,
                    **self._args,
                )
            )

        return bounded(render, sum(len(message.content) for message in messages))

    def _probe(self, messages: Sequence[Message], *, answer_next: bool) -> str:
        """Render a conversation that every template must accept.

        Raises:
            ModelError: this one does not.
        """
        try:
            return self._render(messages, answer_next=answer_next)
        except Exception as error:  # as above
            raise ModelError(
                f"the chat template cannot render a plain conversation ({error}); set "
                f"chat_template to {', '.join(BUILT_IN)} or a Jinja file"
            ) from error
