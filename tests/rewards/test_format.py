from __future__ import annotations

import pytest

from boresight.rewards import Scorer, answer_format_reward, article_format_reward, think_format_reward


@pytest.mark.parametrize(
    ("text", "answer_format", "think_format", "article"),
    [
        ("<think>a</think><answer>b</answer>", 1, 1, 1),
        ("<think>a</think> \n <answer>b</answer>", 1, 1, 1),
        ("<think>a\nb</think>\n<answer>c\nd</answer>", 1, 1, 0),
        ("<think></think><answer></answer>", 0, 1, 1),
        ("<think> \n</think><answer>b</answer>", 0, 1, 0),
        ("<think>a</think><answer> </answer>", 0, 1, 1),
        ("<think>it</think>x</think><answer> l anoth</think>y</think> p</think><answer>3</answer>", 0, 1, 1),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0, 1, 1),
        ("<think>a</think></think><answer>b</answer>", 0, 1, 1),
        ("<think>a<answer>b</answer></think><answer>c</answer>", 0, 1, 1),
        ("<think>a</think> so <answer>b</answer>", 0, 1, 0),
        ("<think>a</think><answer>b</answer> indeed", 0, 1, 0),
        ("<think>a</think> b", 0, 1, 0),
        ("<think>a <think> b</think> c", 0, 0, 0),
        ("<think>a <answer>b</answer>", 0, 0, 0),
        (" <think>a</think><answer>b</answer>", 0, 0, 0),
        ("<answer>b</answer>", 0, 0, 0),
        ("</think><think>", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_formats(text, answer_format, think_format, article):
    conversation = [{"role": "assistant", "content": text}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]}]
    completions = [text, conversation, parts]
    assert answer_format_reward(completions, solution=["ignored"] * 3) == [answer_format] * 3
    assert think_format_reward(completions, solution=["ignored"] * 3) == [think_format] * 3
    assert article_format_reward(completions, solution=["ignored"] * 3) == [article] * 3


@pytest.mark.parametrize(
    ("text", "opened", "not_opened", "unknown"),
    [
        ("a\n</think>\n\n<answer>b</answer>", 1, 0, 1),
        ("<think>a</think><answer>b</answer>", 0, 1, 1),
        ("a</think></think><answer>b</answer>", 0, 0, 0),
        ("</think><answer>b</answer>", 0, 0, 0),
        ("a <answer>b</answer>", 0, 0, 0),
    ],
)
def test_a_think_that_the_template_opened(make_group, text, opened, not_opened, unknown):
    assert answer_format_reward([text] * 2, think_opened=[True, False]) == [opened, not_opened]
    assert answer_format_reward([text]) == [unknown]
    for told, mark in ((True, opened), (False, not_opened)):
        scorer = Scorer(["answer_format_reward", "think_format_reward"], think_opened=lambda prompt, told=told: told)
        assert scorer.score([make_group([text])]).values[0, 0] == mark


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
