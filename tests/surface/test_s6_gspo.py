"""S6: GSPO from the command line: what it sets is the article's sample, and it says so with the paper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForImageTextToText

from boresight.cli import main
from boresight.report.completions import read_completions

ARTICLE = {
    "importance_sampling_level": "sequence",
    "epsilon": 3e-4,
    "epsilon_high": 4e-4,
    "beta": 0.0,
    "loss_type": "grpo",
    "steps_per_generation": 4,
}


def test_gspo(
    model_folder: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Four optimizer steps on one generation, a built-in reward and one of the user's own, which lies beside."""
    (tmp_path / "my_s6_rewards.py").write_text(
        "def vowels(completions, **columns):\n"
        "    return [sum(letter in 'aeiou' for letter in said[0]['content']) / 10 for said in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    words = [
        "gspo", "--model-name-or-path", str(model_folder), "--dataset-name", "shapes", "--prompt-column", "question",
        "--solution-column", "answer", "--reward-funcs", "exact_answer_reward", "my_s6_rewards.vowels", "--reward-weights", "1", "0.5",
        "--output-dir", str(run), "--max-steps", "5", "--num-generations", "4", "--per-device-train-batch-size", "8",
        "--max-completion-length", "8", "--logging-steps", "1", "--learning-rate", "1e-3", "--use-cpu",
    ]  # fmt: skip
    assert main(words) == 0
    printed = capfd.readouterr().out
    assert printed.startswith("gspo sets:\n")
    for option, value in ARTICLE.items():
        assert f"  {option}={value!r} " in printed
    assert printed.count("GSPO") >= len(ARTICLE)
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [sum("reward" in line for line in log[start:stop]) for start, stop in ((0, 4), (4, 5))] == [1, 1]
    assert all("clip_ratio/high_mean" in line for line in log[:5])
    assert read_completions(run).num_rows == 2 * 4 * 8
    AutoModelForImageTextToText.from_pretrained(run)
