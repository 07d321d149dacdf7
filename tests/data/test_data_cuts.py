"""What limits cut off is counted and said before anything is trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from macpo.config import DataConfig, LimitsConfig, SplitsConfig
from macpo.data import check_data, render
from macpo.data.cuts import Cuts, count_cuts
from macpo.data.stages import SplitData, content_digest
from macpo.models.chat import Chat
from macpo.records import Message, PreferenceExample, Prompt
from tests.tiny import tiny_tokenizer
from tests.workbench import Workbench, make_agent

LIMITS = LimitsConfig(prompt_tokens=40, response_tokens=8)


def example(*prompt: str, chosen: str = "Yes", rejected: str = "No") -> PreferenceExample:
    messages = (Message("assistant" if i % 2 else "user", text) for i, text in enumerate(prompt))
    return PreferenceExample(Prompt(tuple(messages)), chosen, rejected)


LONG = "word " * 40
EXAMPLES = [
    example("A"),
    example("A", chosen="Seven is a prime, I think, and eleven is another one."),
    example("B", chosen=LONG + "end", rejected=LONG + "other end"),
    example(LONG, "Yes", "C"),
    example(LONG),
    example("What is <|im_end|>?"),
]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tiny_tokenizer())


def test_every_loss_is_counted(chat: Chat) -> None:
    cuts = count_cuts(chat, EXAMPLES, LIMITS)
    assert (cuts.prompts, cuts.prompts_shortened, cuts.prompts_too_long) == (5, 1, 1)
    assert (cuts.pairs, cuts.pairs_equal) == (5, 1)
    assert (cuts.answers, cuts.answers_cut, cuts.neutralised) == (10, 3, 1)
    assert cuts.lines() == [
        "3 of 10 answers are cut at 8 tokens and have no end of turn",
        "1 of 5 prompts lose their oldest turns to fit 40 tokens",
        "1 of 5 prompts are over 40 tokens without any earlier turn and are left out",
        "1 of 5 pairs have equal answers after the cut",
        "1 texts spell special tokens, which are changed",
    ]


def test_large_data_are_sampled_whatever_their_order(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macpo.data.cuts.SAMPLE", 4)
    many = [example(f"{n}?", chosen=LONG if n % 2 else "Yes") for n in range(12)]
    cuts = count_cuts(chat, many, LIMITS)
    assert (cuts.pairs, cuts.sampled_of) == (4, 12)
    assert count_cuts(chat, many[::-1], LIMITS) == cuts
    assert cuts.lines()[0].startswith("in a sample of 12 pairs, ")
    assert count_cuts(chat, many[:4], LIMITS).sampled_of is None


def test_answer_of_exactly_the_limit_keeps_its_end(chat: Chat) -> None:
    tokens = len(chat.tokenizer("Yes", add_special_tokens=False)["input_ids"]) + 1
    fits = LimitsConfig(prompt_tokens=40, response_tokens=tokens)
    assert count_cuts(chat, [example("A", rejected="Ye")], fits).answers_cut == 0
    short = LimitsConfig(prompt_tokens=40, response_tokens=tokens - 1)
    assert count_cuts(chat, [example("A", rejected="Y")], short).answers_cut == 1


def test_warning_names_the_limit_once_the_share_is_passed() -> None:
    few = Cuts(8, 40, 200, 10, 100, 5, 0, 100, 5, 0)
    assert few.warning is None
    answers = Cuts(8, 40, 200, 11, 100, 0, 0, 100, 0, 3)
    assert answers.warning == (
        "11 of 200 answers are cut at 8 tokens and have no end of turn; raise "
        "limits.response_tokens"
    )
    prompts = Cuts(8, 40, 200, 0, 100, 3, 3, 100, 0, 0)
    assert prompts.warning is not None
    assert prompts.warning.endswith("raise limits.prompt_tokens")


def write(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(e.to_json()) for e in EXAMPLES))
    return path


def test_check_says_what_limits_cut_off(tmp_path: Path, chat: Chat) -> None:
    from tests.data.test_data_report import text

    report = check_data(str(write(tmp_path)), chat=chat, limits=LIMITS)
    assert report.to_json()["cuts"]["answers_cut"] == 3
    printed = " ".join(text(report).split())
    assert "3 of 10 answers are cut at 8 tokens and have no end of turn" in printed
    assert "raise limits.response_tokens and limits.prompt_tokens" in printed
    assert check_data(str(write(tmp_path))).to_json()["cuts"] is None
    assert render(report)


def test_data_stage_reports_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits = SplitsConfig(teacher=1, student=1, test=1)
    config = DataConfig(source=str(write(tmp_path)), splits=splits)
    agents = (make_agent(limits=LIMITS), make_agent(name="other", limits=LIMITS))
    stage = SplitData("data", config, content_digest(config, fetch=True), 0, agents)
    with caplog.at_level(logging.WARNING, "macpo"):
        made = Workbench(tmp_path).run(stage)
    [cuts] = json.loads((made.path / "report.json").read_text(encoding="utf-8"))["cuts"]
    assert (cuts["answers"], cuts["answers_cut"], cuts["pairs_equal"]) == (10, 3, 1)
    [warning] = [r.getMessage() for r in caplog.records if "answers are cut" in r.getMessage()]
    assert warning.startswith("data, as ")


def test_limits_of_answers_are_part_of_the_data_stages_key(tmp_path: Path) -> None:
    config = DataConfig(source=str(write(tmp_path)))
    digest = content_digest(config, fetch=True)
    keys = {
        SplitData(
            "data", config, digest, 0, (make_agent(limits=LimitsConfig(response_tokens=n)),)
        ).key
        for n in (8, 9)
    }
    assert len(keys) == 2


def test_command_line_counts_with_a_models_tokenizer_and_limits(tmp_path: Path) -> None:
    from tests.runs import run_cli
    from tests.tiny import tiny_folder

    path = tmp_path / "rows.csv"
    path.write_text("task,good,bad\nA prime?,Seven is a prime.,Eight\n")
    limits = ["--prompt-tokens", "40", "--response-tokens", "4"]
    columns = ["--columns", "prompt=task,chosen=good,rejected=bad"]
    reader = ["--tokenizer", tiny_folder(tmp_path / "m")]
    done = run_cli(["data", "check", path, *columns, *reader, *limits, "--json"])
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert (report["unit"], report["loading"]["format"]) == ("tokens", "columns")
    assert report["cuts"]["answers_cut"] >= 1
    assert report["cuts"]["response_tokens"] == 4


def test_command_line_counts_with_another_chat_template(tmp_path: Path) -> None:
    """What a template writes around a prompt counts: under a longer one more prompts are cut."""
    from tests.runs import run_cli
    from tests.tiny import tiny_folder

    path = tmp_path / "rows.csv"
    path.write_text("task,good,bad\nA prime?,Seven.,Eight.\n")
    columns = ["--columns", "prompt=task,chosen=good,rejected=bad"]
    options = [*columns, "--tokenizer", tiny_folder(tmp_path / "m"), "--prompt-tokens", "60"]
    told = [
        json.loads(run_cli(["data", "check", path, *options, *more, "--json"]).out)["cuts"]
        for more in ([], ["--chat-template", "alpaca"])
    ]
    assert [cuts["prompts_too_long"] for cuts in told] == [0, 1]

    refused = run_cli(["data", "check", path, "--chat-template", "alpaca"])
    assert refused.code == 1
    assert refused.err.startswith("macpo: --chat-template is of a model; name one with --tokenizer")
