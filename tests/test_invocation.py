"""Commands and machines as they are written down: nothing secret is."""

from __future__ import annotations

import pytest

from macpo.invocation import command_line, describe_process, hide_secrets


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["/usr/bin/macpo", "run", "my run.yaml"], "macpo run 'my run.yaml'"),
        (["macpo", "--token", "abc", "run"], "macpo --token '***' run"),
        (["macpo", "--api-key=abc"], "macpo '--api-key=***'"),
        (["macpo", "--set", "judge.api_key=abc"], "macpo --set 'judge.api_key=***'"),
        (["macpo", "--set", "x=hf_abcdefghijkl"], "macpo --set 'x=***'"),
        (["macpo", "--data", "https://me:pw@host/d"], "macpo --data 'https://***@host/d'"),
        (["macpo", "--data", "https://h/d?token=abc&x=1"], "macpo --data 'https://h/d?token=***'"),
        # Words that only look like it.
        (["macpo", "--set", "sampling.max_new_tokens=8"], "macpo --set sampling.max_new_tokens=8"),
        (["macpo", "--set", "engine.pack_tokens=64"], "macpo --set engine.pack_tokens=64"),
        (["macpo", "risk-management-plan.yaml"], "macpo risk-management-plan.yaml"),
        ([], "python"),
    ],
)
def test_command_is_as_typed_without_secrets(arguments: list[str], shown: str) -> None:
    assert command_line(arguments) == shown


def test_config_is_shown_without_secrets() -> None:
    text = "judge:\n  api_key: abc\n  model: m\nsource: https://u:p@h/x\nmax_new_tokens: 8\n"
    assert hide_secrets(text) == (
        "judge:\n  api_key: ***\n  model: m\nsource: https://***@h/x\nmax_new_tokens: 8\n"
    )


def test_process_says_versions_and_machine() -> None:
    found = describe_process()
    assert {"macpo", "python", "torch", "transformers", "peft"} <= found["versions"].keys()
    assert found["machine"]["cores"] > 0
    assert found["machine"]["memory_gib"] > 0
