"""A task's generation options as settings of the sampler."""

from __future__ import annotations

from typing import Any

import pytest

from boresight.errors import ConfigError
from boresight.evaluate.generation import Generation, generation_of
from boresight.sampling import SamplingSettings


def settings(**given: Any) -> SamplingSettings:
    return SamplingSettings(
        **{"num_completions": 1, "max_completion_length": 1024, "temperature": 0.0, "seed": 0, **given}
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"max_new_tokens": 16, "temperature": 0, "do_sample": False, "num_beams": 1, "use_cache": True}, {"max_completion_length": 16}),
        ({"temperature": 0.7, "do_sample": False, "top_p": 0.9}, {}),  # greedy in spite of them, as in transformers
        ({"do_sample": True, "top_p": 0.9}, {}),  # at no temperature above 0
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "seed": 5},
         {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "seed": 5}),
        ({"temperature": 1, "do_sample": True, "top_p": None}, {"temperature": 1.0}),
    ],
)  # fmt: skip
def test_greedy_or_drawn(options: dict[str, Any], expected: dict[str, Any]) -> None:
    assert generation_of(options, "mme").sampling == settings(**expected)


def test_what_the_caller_decides() -> None:
    found = generation_of(
        {"max_new_tokens": 16, "temperature": 1.0}, "mme", num_completions=3, max_completion_length=99
    )
    assert found.sampling == settings(num_completions=3, max_completion_length=99, temperature=1.0)


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        ({"until": ["\n\n"]}, ()),  # lmms-eval's own, which no task asked for
        ({"until": "END"}, ("END",)),
        ({"until": ["\n\n", "Q:", ""], "stop_sequences": ["</answer>"]}, ("Q:", "</answer>")),
    ],
)
def test_stops(options: dict[str, Any], stops: tuple[str, ...]) -> None:
    assert generation_of(options, "mme").stops == stops


def test_a_completion_ends_before_its_first_stop() -> None:
    asked = Generation(settings(), ("Q:", "\n"))
    assert asked.cut("red\nQ: and?") == "red"
    assert asked.cut("red Q: and?\n") == "red "
    assert asked.cut("red") == "red"
    assert asked.cut("Q:") == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, r"task mme asks for beam search \(num_beams: 4\)"),
        (
            {"no_repeat_ngram_size": 3},
            r"task mme: generation_kwargs\['no_repeat_ngram_size'\] is no option of the sampler",
        ),
        ({"temperature": 1.0, "top_p": 1.5}, "task mme, generation_kwargs: .*top_p"),
        ({"max_new_tokens": -1}, "task mme, generation_kwargs: .*max_completion_length"),
    ],
)
def test_what_the_sampler_does_not_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generation_of(options, "mme")
