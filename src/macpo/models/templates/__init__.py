"""The built-in chat templates: Jinja files, as tokenizers carry them.

`vicuna` and `alpaca` are what the paper's runs used (docs/method.md); their opening sentence gives
way to the conversation's own system message. Both end an assistant turn with the tokenizer's EOS
and begin with its BOS if it has one. `chatml` is the form of Qwen and SmolLM, for tokenizers that
have its two tokens.
"""

from __future__ import annotations

import difflib
from importlib.resources import files

from macpo.errors import ModelError
from macpo.paths import user_path

BUILT_IN = ("alpaca", "chatml", "vicuna")


def read_template(name: str) -> str:
    """Return the text of a built-in chat template, or of the Jinja file at a path.

    Raises:
        ModelError: `name` is neither, or the file cannot be read.
    """
    if name in BUILT_IN:
        return (files(__package__) / f"{name}.jinja").read_text(encoding="utf-8")
    path = user_path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name.lower(), BUILT_IN, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"built in: {', '.join(BUILT_IN)}"
        raise ModelError(f"chat_template: {name!r} is neither a file nor built in; {hint}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"chat_template: {path} cannot be read ({error})") from error
