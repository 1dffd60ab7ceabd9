from __future__ import annotations

import pytest

from boresight.cli import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grop"], "there is no command 'grop'. Did you mean 'grpo'?"),
        (["demo", "--minuts", "1"], "boresight demo has no option --minuts. Did you mean '--minutes'?"),
        (["demo", "--min", "1"], "boresight demo has no option --min."),  # no abbreviations
        (["env", "now"], "boresight env has no option now."),
    ],
)
def test_unknown_words_end_with_2_and_the_nearest_name(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_both_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    """The option is known: what is refused is the other one."""
    assert main(["demo", "--output_dir=x", "--nothing"]) == 2
    assert "has no option --nothing" in capsys.readouterr().err


def test_a_command_says_what_the_shell_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "boresight.rollout.vllm.serve.serve", lambda command, max_restarts: len(command) and max_restarts + 2
    )
    assert main(["vllm-serve", "--model", "m", "--tensor-parallel-size", "1"]) == 7
    assert main(["env"]) == 0
