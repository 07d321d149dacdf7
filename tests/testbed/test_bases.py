"""Tokenizer and bases: lossless, fit for the chat code, deterministic, and able to learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from macpo.config import EngineConfig, ModelConfig, SamplingConfig
from macpo.errors import ConfigError, TrainingError
from macpo.generation.local import LocalGenerator
from macpo.models.chat import Chat
from macpo.models.loading import load_model, load_tokenizer
from macpo.models.sources import resolve
from macpo.records import Message, Prompt, dataset_response
from macpo.testbed import bases
from macpo.testbed.bases import (
    POSITIONS,
    PRESETS,
    Recipe,
    base_digest,
    get_recipe,
)
from macpo.testbed.corpus import Conversation, draw_conversation
from macpo.testbed.dataset import preference_examples
from macpo.testbed.dice import Dice
from macpo.testbed.pretraining import (
    IGNORED,
    answer_loss,
    batches,
    build_base,
    collate,
    new_model,
    pretrain,
    rate_at,
)
from macpo.testbed.prompts import FAMILIES, MIX
from macpo.testbed.tokenizer import TOKENS, VOCABULARY, render_parts, train_tokenizer

TINY = Recipe(32, 1, 64, steps=12, batch=8, learning_rate=1e-2, seed=0)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer()


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    return "tiny"


def conversations(count: int) -> list[Conversation]:
    dice = Dice("conversations")
    return [draw_conversation(dice, MIX) for _ in range(count)]


@pytest.mark.parametrize(
    "text",
    ["Hello! It is 1 2 3.", "  two  spaces\n\ttab", "ünïcödé 🙂 漢字", "\x00\x7f", "a" * 300],
)
def test_tokenizer_gives_any_text_back(tokenizer: Any, text: str) -> None:
    chat = Chat(tokenizer)
    prompt = Prompt(preference_examples(1, seed=0)[0].prompt.messages)
    ids = chat.encode_completion(dataset_response(prompt, text), limit=1000)
    assert chat.decode(ids) == text


def test_tokenizer_is_the_same_each_time(tokenizer: Any) -> None:
    assert train_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) == TOKENS <= VOCABULARY


def test_answers_are_short_in_tokens(tokenizer: Any) -> None:
    chat = Chat(tokenizer)
    lengths = [
        len(chat.encode_completion(dataset_response(e.prompt, answer), limit=100))
        for e in preference_examples(500, seed=0)
        for answer in (e.chosen, e.rejected)
    ]
    assert 18 < sum(lengths) / len(lengths) < 30
    assert max(lengths) < 64
    prompts = [len(chat.encode_prompt(e.prompt, 512).ids) for e in preference_examples(500, seed=0)]
    assert max(prompts) < 64


def test_pretraining_and_chat_code_meet_in_the_same_tokens(tokenizer: Any) -> None:
    chat = Chat(tokenizer)
    assert chat.end_of_turn == tokenizer.eos_token_id != tokenizer.pad_token_id
    for conversation in conversations(200):
        parts = render_parts(conversation)
        before = "".join(text for text, _ in parts[:-1])
        prompt = chat.encode_prompt(conversation.prompt, 512).ids
        answer = chat.encode_completion(
            dataset_response(conversation.prompt, conversation.answer), 512
        )
        apart = [i for text, _ in parts for i in tokenizer(text)["input_ids"]]
        assert tuple(tokenizer(before)["input_ids"]) == prompt
        assert tuple(apart[: len(prompt + answer)]) == prompt + answer
        assert tokenizer(before + parts[-1][0])["input_ids"] == apart


def test_template_writes_what_is_rendered_for_pretraining(tokenizer: Any) -> None:
    for conversation in conversations(50):
        messages = [message.to_json() for message in conversation.messages]
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert "".join(text for text, _ in render_parts(conversation)) == whole


def test_only_the_last_answer_is_learned_but_in_exercises_all_are(tokenizer: Any) -> None:
    talk = (Message("user", "Add 1 and 2."), Message("assistant", "It is 3.")) * 2
    for learned, expected in ((0, [False, True, False, True]), (3, [False, True])):
        parts = render_parts(Conversation(talk, learned))
        assert [flag for _, flag in parts] == expected
        assert parts[-1] == ("It is 3.<|im_end|>\n", True)


def test_labels_are_the_ids_of_learned_answers_and_nothing_else(tokenizer: Any) -> None:
    rows = next(batches(TINY, tokenizer))
    ids, labels = collate(rows, tokenizer.pad_token_id)
    for i, (row, learned) in enumerate(rows):
        assert ids[i, : len(row)].tolist() == row
        assert ids[i, len(row) :].eq(tokenizer.pad_token_id).all()
        assert labels[i, : len(row)].tolist() == learned
        assert labels[i, len(row) :].eq(IGNORED).all()
        assert all(label in (IGNORED, token) for label, token in zip(learned, row, strict=True))
        answers = tokenizer.decode([label for label in learned if label != IGNORED])
        assert answers.endswith("<|im_end|>\n")
        assert "<|im_start|>" not in answers


def test_padding_does_not_change_the_loss(tokenizer: Any) -> None:
    model = new_model(TINY, tokenizer).eval()
    rows = next(batches(TINY, tokenizer))
    rows = [rows[0], (rows[1][0] * 2, rows[1][1] * 2)]
    counts = [sum(label != IGNORED for label in labels) for _, labels in rows]
    with torch.no_grad():
        apart = [answer_loss(model, *collate([row], tokenizer.pad_token_id)).item() for row in rows]
        together = answer_loss(model, *collate(rows, tokenizer.pad_token_id)).item()
    expected = sum(n * loss for n, loss in zip(counts, apart, strict=True)) / sum(counts)
    assert together == pytest.approx(expected, rel=1e-5)


def test_a_few_steps_lower_the_loss_on_unseen_text(tokenizer: Any) -> None:
    seen: list[tuple[int, int]] = []
    held_out = collate(
        next(batches(replace(TINY, seed=99, batch=32), tokenizer)), tokenizer.pad_token_id
    )

    def note(done: int, total: int, *, loss: float) -> None:
        seen.append((done, total))

    model = pretrain(TINY, tokenizer, note)
    with torch.no_grad():
        before = answer_loss(new_model(TINY, tokenizer), *held_out).item()
        after = answer_loss(model, *held_out).item()
    assert after < before - 1
    assert seen == [(i + 1, 12) for i in range(12)]
    assert not model.training


def test_loss_that_is_not_finite_stops_with_the_rate(tokenizer: Any) -> None:
    with pytest.raises(TrainingError, match=r"^pretraining, step \d+ of 12: loss nan; try a lower"):
        pretrain(replace(TINY, learning_rate=1e30), tokenizer)


def test_learning_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [rate_at(step, 100) for step in range(100)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.001


def test_base_is_the_same_in_every_byte_when_built_again(tiny_preset: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first, second = build_base(tiny_preset, tmp_path / "a"), build_base(tiny_preset, tmp_path / "b")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert torch.equal(torch.get_rng_state(), state)


def test_base_is_an_ordinary_folder_that_can_answer(tiny_preset: str, tmp_path: Path) -> None:
    folder = build_base(tiny_preset, tmp_path / "made" / "here")
    resolved = resolve(ModelConfig(source=str(folder)))
    chat = Chat(load_tokenizer(resolved))
    model = load_model(resolved, torch.float32, "cpu")
    assert model.config.max_position_embeddings == POSITIONS
    prompts = [example.prompt for example in preference_examples(3, seed=0)]
    generator = LocalGenerator(
        model, chat, policy="student/positive", prompt_tokens=64, engine=EngineConfig()
    )
    answers = generator.respond(prompts, SamplingConfig(max_new_tokens=8), (0,))
    assert [answer.prompt_id for answer in answers] == [prompt.id for prompt in prompts]
    assert answers[0].origin.backend.endswith("decode")  # not the fallback


def test_digest_changes_with_every_field_of_a_recipe_and_with_the_versions(
    tiny_preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = {base_digest(tiny_preset)}
    changes: list[dict[str, Any]] = [
        {"hidden": 48},
        {"layers": 2},
        {"intermediate": 96},
        {"steps": 13},
        {"batch": 9},
        {"learning_rate": 0.02},
        {"seed": 1},
        {"mix": tuple((family, 1.0) for family in FAMILIES)},
    ]
    for change in changes:
        monkeypatch.setitem(PRESETS, "tiny", replace(TINY, **change))
        digests.add(base_digest(tiny_preset))
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    for version in ("WORLD_VERSION", "BASES_VERSION", "VOCABULARY"):
        with monkeypatch.context() as patch:
            patch.setattr(bases, version, 9999)
            digests.add(base_digest(tiny_preset))
    assert len(digests) == 1 + len(changes) + 3
    assert base_digest(tiny_preset) in digests


def test_presets_differ_and_the_strong_one_is_the_largest(tokenizer: Any) -> None:
    sizes = {
        name: new_model(recipe, tokenizer).num_parameters() for name, recipe in PRESETS.items()
    }
    assert all(size < sizes["strong"] / 2 for name, size in sizes.items() if name != "strong")
    assert 50_000 < min(sizes.values()) < max(sizes.values()) < 1_000_000
    assert len({base_digest(name) for name in PRESETS}) == len(PRESETS) >= 6
    for recipe in PRESETS.values():
        assert recipe.hidden % 16 == 0
        assert [family for family, _ in recipe.mix] == list(FAMILIES)
        assert all(weight > 0 for _, weight in recipe.mix)
        assert sum(weight for _, weight in recipe.mix) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("weak1", "did you mean weak-1?"),
        ("x", "take one of strong, weak-1, weak-2, weak-3, weak-4, weak-5"),
    ],
)
def test_unknown_preset_is_refused_with_a_name_to_take(name: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_recipe(name)
    assert str(caught.value) == f"'{name}' is no base of the testbed; {remedy}"
