"""What TRL documents about tools and environments, written as for TRL, with only the import changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from boresight.data.turns import rendered_turn
from boresight.errors import ConfigError
from boresight.tools.parsing import parsed_turn
from boresight.trainer.rollouts.scored import group_from_state, group_state
from tests.trainer.conftest import Run
from tests.trainer.rollouts.callables import Broken, IncrementEnv, LooksAround, Number, slow_times, times
from tests.trainer.scripted import call, sampled_groups

QUESTIONS = [
    {"prompt": [{"role": "user", "content": f"What is {n} times three?"}], "answer": str(3 * n)} for n in (2, 5)
]


@pytest.mark.parametrize("tool", [times, slow_times])
def test_a_tool_that_computes(with_tools: Run, tool: Any) -> None:
    seen: list[Any] = []

    def right(completions: list[Any], answer: list[str], **kwargs: Any) -> list[float]:
        seen.extend(completions)
        return [
            float(any(message["role"] == "tool" and message["content"][0]["text"] == wanted for message in completion))
            for completion, wanted in zip(completions, answer, strict=True)
        ]

    def asks(row: int, k: int, turn: int) -> str | None:
        return None if turn or k == 3 else call(tool.__name__, a=(2, 5)[row], b=3)

    trainer = with_tools(asks, right, QUESTIONS, tools=[tool], by_row=True)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["rewards/right/mean"] == 0.75
    assert log["tools/call_frequency"] == 0.75
    assert log["tools/failure_frequency"] == 0
    assert log[f"tools/{tool.__name__}/seconds"] >= 0
    assert [message["role"] for message in seen[0]] == ["assistant", "tool", "assistant"]
    assert seen[0][1]["name"] == tool.__name__


def test_an_environment_that_counts(with_tools: Run) -> None:
    """Each completion has a counter of its own, which is 0 again in the next rollout."""

    def counted(environments: list[Any], **kwargs: Any) -> list[float]:
        assert len({id(environment) for environment in environments}) == len(environments)
        return [float(environment.counter) for environment in environments]

    def increments(place: int, k: int, turn: int) -> str | None:
        if turn == 0:
            return call("increment", step=k + 1)
        return call("increment", step=10) if turn == 1 and place % 4 == 0 else None

    trainer = with_tools(increments, counted, QUESTIONS, environment_factory=IncrementEnv, max_steps=2)
    trainer.train()
    for log in trainer.state.log_history[:2]:
        assert log["rewards/counted/mean"] == (11 + 2 + 3 + 4) / 4


def test_an_image_when_an_environment_is_reset(with_tools: Run) -> None:
    prompts: list[Any] = []

    def reward(prompts: list[Any], **kwargs: Any) -> list[float]:
        seen.extend(prompts)
        return [float(place % 2) for place in range(len(prompts))]

    seen = prompts
    trainer = with_tools(
        lambda place, k, turn: None if turn or k else call("look"), reward, QUESTIONS, environment_factory=LooksAround
    )
    groups = sampled_groups(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["sampling/sampling_logp_difference/max"] < 1e-4
    image_token = trainer.facts.image_token_id
    for group in groups:
        assert len(group.prompt.images) == 1
        assert (group.prompt.ids == image_token).sum() > 0
        assert len(group.completions[0].image_sets) == 1
        # What a checkpoint keeps of it, and another rank receives.
        again = group_from_state(group_state(group), trainer._prompt, trainer.encoder.with_observation)
        assert torch.equal(again.prompt.ids, group.prompt.ids)
        assert again.prompt.images == group.prompt.images
        assert torch.equal(again.prompt.vision["pixel_values"], group.prompt.vision["pixel_values"])
    assert groups[0].prompt.images != groups[1].prompt.images
    assert [part["type"] for part in prompts[0][-1]["content"]] == ["text", "text", "image"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [(Broken, "row .: reset of Broken"), (Number, "row .: reset of Number returned a int: return a text")],
)
def test_an_observation_that_cannot_be_used_is_refused(with_tools: Run, kind: type, message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        with_tools(
            None, lambda completions, **kwargs: [0.0] * len(completions), QUESTIONS, environment_factory=kind
        ).train()
    assert isinstance(error.value, ConfigError | ValueError)


def test_an_image_of_another_run_is_an_image(with_tools: Run) -> None:
    """A tool may return an image that it kept from an earlier rollout, or another run's: images are equal where their bytes are."""
    kept = Image.new("RGB", (56, 56), "yellow")

    def show() -> Image.Image:
        """Show it."""
        return kept

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [float(place % 2) for place in range(len(completions))]

    logs = []
    for _ in range(2):
        trainer = with_tools(
            lambda place, k, turn: None if turn else call("show"), reward, QUESTIONS, tools=[show], max_steps=2
        )
        trainer.train()
        logs += trainer.state.log_history[:2]
    assert all(log["tools/num_images"] == 1 for log in logs)
    assert all(log["tools/failure_frequency"] == 0 for log in logs)
    assert all(log["sampling/sampling_logp_difference/max"] < 1e-4 for log in logs)


TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "[CALL]",
            "close_pattern": r"\[/CALL\]\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""A form of calls that boresight does not know."""


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (
            'I look.\n[CALL]{"name": "times", "arguments": {"a": 2, "b": 3}}[/CALL]',
            [("times", {"a": 2, "b": 3})],
            "I look.",
        ),
        ("It is six.", [], "It is six."),
    ],
)
def test_calls_are_read_by_the_tokenizers_own_parser(with_tools: Run, text: str, calls: Any, content: str) -> None:
    tokenizer = with_tools(None, lambda completions, **kwargs: [0.0], QUESTIONS, tools=[times]).encoder.tokenizer
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], stop]
    prefix = tokenizer("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    assert parsed_turn(tokenizer, ids, prefix, [], [stop]).calls == ()  # without the template it is text
    tokenizer.response_template = TEMPLATE
    try:
        found = parsed_turn(tokenizer, ids, prefix, [], [stop])
    finally:
        del tokenizer.response_template
    assert [(each.name, dict(each.arguments)) for each in found.calls] == calls
    assert found.content.strip() == content


def test_trl_templates_that_keep_earlier_turns_are_taken(with_tools: Run) -> None:
    """TRL's own training template of Qwen3: its glue is found, and two results of one turn are joined as it joins them."""
    trl = pytest.importorskip("trl.chat_template_utils")
    trainer = with_tools(None, lambda completions, **kwargs: [0.0], QUESTIONS, tools=[times])
    texts = trainer.encoder.texts
    texts.processor.chat_template = trl.qwen3_training_chat_template
    results = [{"role": "tool", "name": "times", "content": text} for text in ("6", "15")]
    row = trainer._prompt(0).row
    found = rendered_turn(texts, results, row)
    assert found.startswith(
        "\n<|im_start|>user\n<tool_response>\n6\n</tool_response>\n<tool_response>\n15\n</tool_response><|im_end|>\n"
    )
