"""Rollouts of several turns in a trainer, with the real model, processor and sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from boresight import GRPOConfig, GRPOTrainer
from boresight.data.schema import read_row
from boresight.data.turns import rendered_turn
from boresight.errors import ConfigError, ModelError
from boresight.report.completions import read_completions
from boresight.tools import ImageTools, calculator
from boresight.types import Row
from tests.trainer.conftest import Run
from tests.trainer.rollouts.callables import RED, Guess, broken, hangs, long, many, nothing, raises, show
from tests.trainer.scripted import call, sampled_groups


def by_turns(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(completion)) + 0.1 * len(completion[-1]["content"]) for completion in completions]


def uneven(place: int, k: int, turn: int) -> str | None:
    """One completion of each group answers at once, the second calls once, the third in two turns, the fourth twice in one."""
    plans = [
        [],
        ["I look. " + call("show", size=56)],
        [call("show", size=84), call("calculator", expression="2 * 3")],
        [call("show", size=56) + call("show", size=112)],
    ]
    # In later turns each branch is a prompt of its own: branches of both groups, those that called in order.
    if turn == 0:
        return plans[k][0] if plans[k] else None
    branch = [1, 2, 3][place % 3] if turn == 1 else 2
    return plans[branch][turn] if turn < len(plans[branch]) else None


def test_branches_of_uneven_turns_with_images(with_tools: Run) -> None:
    """What was sampled in every turn is what is trained on, and its log-probabilities are those of the training forward."""
    trainer = with_tools(uneven, by_turns, tools=[show, calculator], max_completion_length=300)
    groups = sampled_groups(trainer)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["tools/call_frequency"] == pytest.approx((0 + 1 + 2 + 2) / 4)
    assert log["tools/failure_frequency"] == 0
    assert log["tools/frac_without_call"] == 0.25
    assert log["tools/num_images"] == pytest.approx((0 + 1 + 1 + 2) / 4)
    assert log["sampling/sampling_logp_difference/max"] < 1e-4
    for group in groups:
        assert [len(each.image_sets) for each in group.completions] == [0, 1, 1, 1]
        assert [[message["role"] for message in each.messages] for each in group.completions] == [
            ["assistant"],
            ["assistant", "tool", "assistant"],
            ["assistant", "tool", "assistant", "tool", "assistant"],
            ["assistant", "tool", "tool", "assistant"],
        ]
        second = group.completions[1]
        assert second.messages[0]["content"] == "I look."
        assert second.messages[0]["tool_calls"][0]["function"] == {"name": "show", "arguments": {"size": 56}}
        assert (second.unexpanded_ids == trainer.facts.image_token_id).sum() == 1
        assert (second.ids == trainer.facts.image_token_id).sum() == 16
        uncounted = trainer.encoder.tokenizer.decode(second.ids[~second.mask])
        assert uncounted.replace("<|image_pad|>", "") == (
            "\n<|im_start|>user\n<tool_response>\nlook:<|vision_start|><|vision_end|>\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        )
        assert (second.sampler_logp[~second.mask] == 0).all()
        assert len(second.ids) <= 300
    logp = trainer.logp(groups, trainer.policy)
    assert all(torch.isfinite(block).all() for block in logp)
    stored = read_completions(trainer.args.output_dir).to_pylist()
    assert len(stored) == 8


def test_environments_are_trls(with_tools: Run) -> None:
    """Reset with the row's columns, an observation in the prompt, methods as tools, `get_reward`, and `environments` for others."""
    seen: list[Any] = []

    def asks(environments: list[Any], prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        seen.extend(zip(environments, prompts, completions, strict=True))
        return [float(environment.tries > 1) for environment in environments]

    def plays(place: int, k: int, turn: int) -> str | None:
        branch = k if turn == 0 else place % 4
        return call("guess", word="red") if turn <= branch and turn < 2 else None

    trainer = with_tools(plays, asks, environment_factory=Guess)
    trainer.train()
    log = trainer.state.log_history[0]
    assert trainer.scorer.names == ("asks", "Guess")
    assert len({id(environment) for environment, _, _ in seen}) == 8
    assert all("image" not in environment.seen and "images" in environment.seen for environment, _, _ in seen)
    assert all(prompt[-1]["content"][-1] == {"type": "text", "text": " You may guess."} for _, prompt, _ in seen)
    assert log["rewards/Guess/mean"] > 0
    texts = {message["content"][0]["text"] for _, _, turns in seen for message in turns if message["role"] == "tool"}
    assert texts <= {"right", "wrong"}


FAULTS = {
    "raises": ("raised", "ValueError: out of order"),
    "hangs": ("timed_out", "took longer than 1 s"),
    "many": ("refused", "the result has 10 images, and there is room for 2"),
    "broken": ("refused", "the tool's image"),
    "long": ("refused", "10,000,000 characters"),
    "nothing": ("", "None"),
    "absent": ("unknown_tool", "there is no tool 'absent'"),
}


def test_every_fault_is_answered_and_counted(with_tools: Run) -> None:
    names = [*FAULTS, "<unreadable>"]

    def script(place: int, k: int, turn: int) -> str | None:
        if turn:
            return None
        name = names[(4 * place + k) % len(names)]
        return "<tool_call>{not JSON}</tool_call>" if name == "<unreadable>" else call(name)

    told: dict[str, str] = {}

    def answers(completions: list[Any], **columns: Any) -> list[float]:
        for turns in completions:
            told[turns[1]["name"]] = turns[1]["content"][0]["text"]
        return [float(place % 2) for place in range(len(completions))]

    trainer = with_tools(
        script, answers, tools=[hangs, raises, nothing, many, broken, long], tool_timeout=1.0, max_tool_images=2,
        max_completion_length=400,
    )  # fmt: skip
    trainer.train()
    log = trainer.state.log_history[0]
    for name, (kind, text) in FAULTS.items():
        assert text in told[name], name
        if kind:
            assert log[f"tools/num_{kind}"] == [found for found, _ in FAULTS.values()].count(kind), kind
    assert log["tools/num_unreadable"] == 1
    assert "not valid JSON" in told["unknown"]
    assert log["tools/failure_frequency"] == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"max_tool_calling_iterations": 2, "max_completion_length": 400}, "too_many_turns"), ({}, "no_room")],
)
def test_a_policy_that_calls_for_ever_ends(with_tools: Run, options: dict[str, Any], why: str) -> None:
    trainer = with_tools(
        lambda place, k, turn: call("calculator", expression=f"{k} + 1"), by_turns, tools=[calculator], **options
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert log[f"tools/num_{why}"] == 8
    assert log["tools/call_frequency"] == 2 if options else log["tools/call_frequency"] >= 2
    assert max(read_completions(trainer.args.output_dir)["length"].to_pylist()) <= trainer.args.max_completion_length


def test_observations_that_differ_within_a_group_are_refused(with_tools: Run) -> None:
    class Random(Guess):
        count = 0

        def reset(self, **columns: Any) -> str:
            Random.count += 1
            return f"number {Random.count}"

    with pytest.raises(ConfigError, match="different observations for completions of one prompt"):
        with_tools(None, by_turns, environment_factory=Random).train()


def test_a_template_without_tools_is_refused(model_folder: Any, tmp_path: Any) -> None:
    config = GRPOConfig(str(tmp_path), num_generations=4, per_device_train_batch_size=4, report_to="none")
    rows = [{"prompt": [{"role": "user", "content": "x"}]}] * 2
    with pytest.raises(ModelError, match="leaves out the name of a call, its arguments"):
        GRPOTrainer(str(model_folder), by_turns, config, rows, tools=[calculator])


def test_a_template_that_rewrites_earlier_turns_is_refused(with_tools: Run) -> None:
    trainer = with_tools(None, by_turns, tools=[calculator])
    texts = trainer.encoder.texts
    texts.processor.chat_template = (
        "{% for message in messages %}{{ message['role'] }}{% if loop.last or message['role'] != 'assistant' %} "
        "{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    message = {"role": "tool", "name": "calculator", "content": [{"type": "text", "text": "6"}]}
    with pytest.raises(
        ModelError, match="renders an assistant's turn differently once a tool's result follows, at character"
    ):
        rendered_turn(texts, [message], Row(0, (), (), (), {}))
    texts.processor.chat_template = (
        "{{ messages[0]['content'] | string | length }}<|im_end|>"
        "{% for message in messages[2:] %}tool {{ messages[0]['content'] }}{% endfor %}"
    )
    with pytest.raises(
        ModelError, match="renders the results of tools differently after different conversations, at character"
    ):
        rendered_turn(texts, [message], Row(0, (), (), (), {}))


def test_zooming_into_the_rows_own_image(with_tools: Run) -> None:
    row = read_row({"prompt": [{"role": "user", "content": "x"}], "image": RED}, 0)
    assert row.images
    trainer = with_tools(
        lambda place, k, turn: None if turn or k == 3 else call("zoom", left=0, top=0, right=500, bottom=500),
        by_turns, [{"prompt": [{"role": "user", "content": "what?"}], "image": RED}] * 2, environment_factory=ImageTools,
        max_completion_length=300,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.log_history[0]["tools/num_images"] == 0.75
