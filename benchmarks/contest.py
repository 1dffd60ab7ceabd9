"""What `objectives.py` compares, under what it refuses to, and what it keeps of each run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from boresight.demo.accuracy import Accuracy
from boresight.demo.subjects import Recipe
from boresight.trainer.presets import preset

RECIPE = Recipe()


@dataclass(frozen=True, slots=True)
class Method:
    """One line of the plot."""

    label: str
    options: dict[str, Any]
    """Of `GRPOConfig`, beside what is the same for all."""
    color: str
    """Of the palette of Okabe and Ito, which colour-blind people can tell apart."""
    dash: str = "solid"


NOT_EQUAL = ("dynamic_sampling", "max_sampling_rounds")
"""Of DAPO's preset: with it DAPO would sample more completions than the others."""

METHODS = {
    "grpo": Method("GRPO", preset("grpo"), "#000000"),
    "dapo": Method("DAPO", {name: value for name, value in preset("dapo").items() if name not in NOT_EQUAL}, "#0072B2"),
    "sapo": Method("SAPO", preset("sapo"), "#009E73"),
    "rloo": Method("RLOO", preset("rloo"), "#CC79A7"),
    "gspo": Method("GSPO, 4 steps", preset("gspo"), "#D55E00"),
    "gspo-wide": Method(
        "GSPO, 4 steps, ε × 100", preset("gspo") | {"epsilon": 0.03, "epsilon_high": 0.04}, "#E69F00", "dash"
    ),
}
"""Name → what it is. All but GSPO learn from a generation once, while it is fresh."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What is the same for all methods."""

    steps: int = 96
    """Optimizer steps."""
    ask_every: int = 12
    """Steps from one time that held-out questions are asked to the next."""
    num_test: int = 480
    prompts: int = RECIPE.grpo_prompts
    """Prompts of one optimizer step."""
    num_generations: int = RECIPE.num_generations
    learning_rate: float = RECIPE.grpo_learning_rate
    sft_steps: int = RECIPE.sft_steps
    num_rows: int | None = None
    """Training questions that are drawn from; None for all."""


@dataclass(slots=True)
class Run:
    """One method from one seed's checkpoint. Keys are texts, as JSON has them."""

    seed: int
    method: str
    settings: dict[str, Any]
    asked: dict[str, int] = field(default_factory=dict)
    """Kind of question → how many were asked each time."""
    right: dict[str, dict[str, int]] = field(default_factory=dict)
    """Step → kind → how many were answered right."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Step → tokens that training had sent through the language model by then."""
    work: dict[str, int] = field(default_factory=dict)
    """What training sent through the model in all, as `measure.counted_work` counts it, and `completions` sampled."""
    logs: dict[str, dict[str, float]] = field(default_factory=dict)
    """Step → what the trainer logged of the steps before."""
    cpu_s: float = 0.0
    """Seconds of the process in training, without evaluations."""
    wall_s: float = 0.0

    @property
    def steps(self) -> list[int]:
        """When the questions were asked."""
        return sorted(map(int, self.right))

    def result(self, step: int) -> Accuracy:
        return Accuracy(Counter(self.right[str(step)]), Counter(self.asked))

    def accuracy(self, step: int) -> float:
        return self.result(step).share

    @property
    def mean_accuracy(self) -> float:
        """Over all times that the questions were asked after the start: high for a run that got there early."""
        return mean(map(self.accuracy, self.steps[1:]))


def check_effort(effort: Effort, methods: Iterable[str], num_rows: int) -> None:
    """Refuse an effort under which methods would sample unequally, or be asked at different times.

    Raises:
        ValueError: the message names the option and the way out.
    """
    for method in methods:
        served = METHODS[method].options.get("steps_per_generation", 1)
        for option, value in (("steps", effort.steps), ("ask_every", effort.ask_every)):
            if value % served:
                raise ValueError(
                    f"{option}={value} is not a multiple of the {served} steps that {method} learns from one generation: at that "
                    "step it would have sampled more than the others. Choose a multiple, or leave the method out."
                )
    if effort.steps % effort.ask_every:
        raise ValueError(
            f"steps={effort.steps} must be a multiple of ask_every={effort.ask_every}: the end is asked too."
        )
    if effort.steps * effort.prompts > num_rows:
        raise ValueError(
            f"{effort.steps} steps × {effort.prompts} prompts are more than the {num_rows} training questions. In a second epoch methods "
            f"would meet different ones: {num_rows // effort.prompts} steps at most."
        )


def finished(file: Path, settings: Mapping[str, Any]) -> Run | None:
    """A run that an earlier benchmark finished; None where there is none.

    Raises:
        ValueError: it was made under other settings.
    """
    if not file.exists():
        return None
    run = Run(**json.loads(file.read_text()))
    asked = json.loads(json.dumps(settings))
    if run.settings != asked:
        differing = sorted(name for name in {*run.settings, *asked} if run.settings.get(name) != asked.get(name))
        raise ValueError(
            f"{file} holds a run with other settings ({', '.join(differing)}): delete it, or choose another --output-dir."
        )
    return run
