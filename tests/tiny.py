"""Tiny models and tokenizers, made from scratch in milliseconds, for every test that needs one.

tokenizer = tiny_tokenizer()                  # byte-level BPE, ChatML, pad == eos == <|im_end|>
model = tiny_model("qwen3", layers=4, seed=1)  # float32, in evaluation mode
folder = tiny_folder(tmp_path / "m", "llama")  # both, saved as an ordinary model folder
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

ARCHITECTURES = ("llama", "mistral", "qwen3", "gemma2", "gpt_neox")
TOKENIZERS = ("bpe", "llama3", "unigram", "llama", "wordpiece")
LOSSLESS_TOKENIZERS = ("bpe", "llama3", "unigram", "llama")
"""Those that keep every character of a text; WordPiece lower-cases and drops spaces."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

CORPUS = (
    "The quick brown fox jumps over the lazy dog. A teacher answers the question of a student.",
    "user assistant system USER: ASSISTANT: Name a prime number. Seven is a prime, eight is not.",
    "How do I bake bread? Mix flour, water, salt and yeast; wait an hour; bake it until brown.",
    "I am sorry, but I cannot help with that. Is there anything else that I can do for you?",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # 3\n",
    "Weak teachers supervise a strong student: chosen and rejected answers, round after round.",
)

# The split of GPT-4 and Llama 3: digits by threes, and line breaks stick to what precedes them.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_tokenizer(kind: str = "bpe") -> PreTrainedTokenizerFast:
    """Return a new tokenizer with about 400 tokens and the ChatML template.

    Args:
        kind: `bpe` is byte-level as GPT-2 and Qwen are: no BOS, and pad == eos == `<|im_end|>`.
            `llama3` is byte-level with Llama 3's split and a BOS. `unigram` is SentencePiece's
            Unigram with byte fallback, `llama` SentencePiece's BPE as in Llama 2 (both: BOS `<s>`,
            EOS `</s>`, spaces as "▁", and a dummy space before a text; in `llama` also after every
            special token, the "legacy" way). `wordpiece` is BERT's: lossy, EOS `[SEP]`.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(kind)),
        chat_template=CHATML,
        **_named_tokens(kind),
    )


def tiny_model(
    architecture: str = "llama",
    *,
    layers: int = 2,
    vocab_size: int = 512,
    seed: int = 0,
    **overrides: Any,
) -> Any:
    """Return a new float32 model of about 50,000 weights, in evaluation mode.

    Args:
        architecture: one of `ARCHITECTURES`.
        layers: number of decoder layers.
        vocab_size: at least the tokenizer's; 512 suits every tokenizer here.
        seed: of the weights; PyTorch's own random state is left as it was.
        **overrides: of the architecture's config, for example `sliding_window=8`.
    """
    config = tiny_config(architecture, layers=layers, vocab_size=vocab_size, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tiny_config(architecture: str = "llama", *, layers: int = 2, **overrides: Any) -> Any:
    """Return the config that `tiny_model` builds from."""
    common: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,  # large enough that the next token depends on the context
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    grouped = {"num_key_value_heads": 2, "head_dim": 8}
    if architecture == "llama":
        return LlamaConfig(**{**common, **grouped, **overrides})
    if architecture == "mistral":
        return MistralConfig(**{**common, **grouped, "sliding_window": None, **overrides})
    if architecture == "qwen3":
        return Qwen3Config(**{**common, **grouped, **overrides})
    if architecture == "gemma2":
        gemma = {"query_pre_attn_scalar": 8, "sliding_window": 64}
        return Gemma2Config(**{**common, **grouped, **gemma, **overrides})
    if architecture == "gpt_neox":
        return GPTNeoXConfig(**{**common, "hidden_act": "gelu", **overrides})
    raise ValueError(f"{architecture!r} is not one of {', '.join(ARCHITECTURES)}")


def tiny_folder(
    path: Path,
    architecture: str = "llama",
    *,
    tokenizer: str = "bpe",
    layers: int = 2,
    seed: int = 0,
    **overrides: Any,
) -> Path:
    """Save a tiny model and tokenizer as an ordinary Hugging Face folder and return `path`."""
    tiny_model(architecture, layers=layers, seed=seed, **overrides).save_pretrained(path)
    tiny_tokenizer(tokenizer).save_pretrained(path)
    return path


def _named_tokens(kind: str) -> dict[str, str]:
    if kind in ("bpe", "llama3"):
        named = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
        return named if kind == "bpe" else {**named, "bos_token": "<|begin_of_text|>"}
    if kind == "wordpiece":
        return {"unk_token": "[UNK]", "eos_token": "[SEP]", "pad_token": "[PAD]"}
    return {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}


@functools.cache
def _trained(kind: str) -> str:
    """Train a tokenizer on `CORPUS` and return its JSON (text, since tokenizers are mutable)."""
    if kind in ("bpe", "llama3"):
        return _byte_level(kind)
    if kind in ("unigram", "llama"):
        return _sentencepiece(kind)
    if kind == "wordpiece":
        return _wordpiece()
    raise ValueError(f"{kind!r} is not one of {', '.join(TOKENIZERS)}")


def _byte_level(kind: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    if kind == "bpe":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    first = "<|endoftext|>" if kind == "bpe" else "<|begin_of_text|>"
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[first, *CHATML_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


def _sentencepiece(kind: str) -> str:
    specials = ["<unk>", "<s>", "</s>", *CHATML_TOKENS]
    trainer: Any
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=160, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        trainer = trainers.BpeTrainer(vocab_size=160, special_tokens=specials, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(CORPUS, trainer)
    if kind == "llama":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _with_byte_fallback(str(tokenizer.to_str()))


def _with_byte_fallback(text: str) -> str:
    """Add the 256 byte tokens, which the trainers cannot make, so that any text can be encoded."""
    content = json.loads(text)
    model = content["model"]
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    if isinstance(model["vocab"], dict):
        model["vocab"].update({n: len(model["vocab"]) + i for i, n in enumerate(names)})
    else:
        model["vocab"].extend([name, -20.0] for name in names)
    model["byte_fallback"] = True
    return json.dumps(content)


def _wordpiece() -> str:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400,
        special_tokens=["[PAD]", "[UNK]", "[SEP]", *CHATML_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())
