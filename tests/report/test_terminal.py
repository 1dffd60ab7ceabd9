from __future__ import annotations

import io
import math
import random

import pytest
import torch
from rich.console import Console

from boresight.report import CompletionStore, print_completions

LONG_NAME = "soft_overlong_punishment_reward"


@pytest.fixture
def rows(tmp_path, make_group, make_image):
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "old " * 200 + "what colour?"}]}]
    groups = [
        make_group(
            ["<answer>blue</answer>", "[bold]red\x1b[31m", "so " * 500 + "the end…"],
            index=17,
            prompt=prompt,
            images=[make_image("blue")],
        ),
        make_group([""], index=4012, prompt="yes or no?"),
    ]
    return CompletionStore(tmp_path).add(
        12,
        groups,
        rewards={"exact_answer_reward": torch.tensor([1.0, 0, 0, math.nan]), LONG_NAME: torch.tensor([0.0, 0, -1, 0])},
        reward=torch.tensor([1.0, 0, -1, math.nan]),
        advantage=torch.tensor([1.5, 0.25, -1.75, 0]),
    )


def printed(rows, width, num=None):
    file = io.StringIO()
    print_completions(rows, num_completions=num, console=Console(width=width, file=file))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_everything_is_there_at_any_width(rows, width):
    text = printed(rows, width)
    assert all(len(line) <= width for line in text.splitlines())
    words = " ".join(text.replace("│", " ").split())
    for shown in (
        "step 12 · train",
        "row 17, 1 image",
        "what colour?",
        "characters before] …",
        "1.00 +1.50 1 <answer>blue</answer>",
        "exact_answer 1.00",
        "soft_overlong_punishment -1.00",
        "[bold]red�[31m",
        "502 cut",
        "the end…",
        "row 4012",
        "– +0.00 0 (empty)",
        "4 of 4 completions",
    ):
        assert shown in words, shown
    assert "\x1b" not in text


def test_some_are_drawn_without_touching_the_run(rows):
    random.seed(1)
    state = random.getstate()
    text = printed(rows, 100, num=2)
    assert random.getstate() == state
    assert "2 of 4 completions" in text and text.count("exact_answer") == 2
    assert text == printed(rows, 100, num=2)


def test_without_advantage(tmp_path, make_group):
    reward = torch.tensor([0.5])
    rows = CompletionStore(tmp_path).add(3, [make_group(["a"])], rewards={"f": reward}, reward=reward, phase="eval")
    text = printed(rows, 80)
    assert "step 3 · eval" in text and "advantage" not in text and "0.50" in text


def test_the_right_answer_stands_above_and_the_given_one_beside(tmp_path, make_group):
    group = make_group(["<answer>[b]5</answer>", "no idea"], index=3, prompt="which digit?")
    group.prompt.row.columns["solution"] = "3"
    reward = torch.tensor([0.0, 0.0])
    answers = [("[b]5", "3"), ("", "3")]
    rows = CompletionStore(tmp_path).add(1, [group], rewards={"exact": reward}, reward=reward, answers=answers)
    text = printed(rows, 100)
    assert text.count("right answer: 3") == 1
    assert "answer [b]5 · exact 0.00" in text and text.count("· exact") == 1
