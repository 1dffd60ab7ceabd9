from __future__ import annotations

import pytest

from boresight.rewards import answer_format_reward, think_format_reward


@pytest.mark.parametrize(
    ("text", "answer_format", "think_format"),
    [
        ("<think>a</think><answer>b</answer>", 1, 1),
        ("<think>a</think> \n <answer>b</answer>", 1, 1),
        ("<think>a\nb</think>\n<answer>c\nd</answer>", 1, 1),
        ("<think></think><answer></answer>", 1, 1),
        ("<think>a</think> so <answer>b</answer>", 0, 1),
        ("<think>a</think><answer>b</answer> indeed", 0, 1),
        ("<think>a</think> b", 0, 1),
        ("<think>a <think> b</think> c", 0, 0),
        ("<think>a <answer>b</answer>", 0, 0),
        (" <think>a</think><answer>b</answer>", 0, 0),
        ("<answer>b</answer>", 0, 0),
        ("</think><think>", 0, 0),
        ("", 0, 0),
    ],
)
def test_formats(text, answer_format, think_format):
    conversation = [{"role": "assistant", "content": text}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]}]
    completions = [text, conversation, parts]
    assert answer_format_reward(completions, solution=["ignored"] * 3) == [answer_format] * 3
    assert think_format_reward(completions, solution=["ignored"] * 3) == [think_format] * 3


def test_think_format_equals_trl():
    from trl.rewards import think_format_reward as trl_think_format_reward

    texts = [
        "<think>a</think>b",
        "<think>a\n</think>\nb",
        "<think><think></think>",
        "<think>a</think>\n<think>",
        "a",
        "<think>",
    ]
    conversations = [[{"role": "assistant", "content": text}] for text in texts]
    assert think_format_reward(conversations) == trl_think_format_reward(conversations) == [1, 1, 0, 0, 0, 0]
