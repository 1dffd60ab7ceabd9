"""The options that every sampler has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from boresight.errors import ConfigError, nearest
from boresight.option_checks import read_json
from boresight.options import Range, declarations, option


@dataclass
class SamplingOptions:
    """How completions are sampled. Names and defaults are TRL's (`GRPOConfig`).

    `top_p`, `top_k`, `min_p` and `repetition_penalty` sample from another distribution than the policy's. The sampler reports
    log-probabilities of the distribution that it sampled from, and the loss corrects for the difference
    (`vllm_importance_sampling_correction`).
    """

    heading: ClassVar[str] = "rollout"

    num_generations: Annotated[int, Range(at_least=1)] = option(
        8, "Completions per prompt: the group size (G in papers, K in boresight)."
    )
    num_generations_eval: Annotated[int | None, Range(at_least=1)] = option(
        None, "Completions per prompt in evaluation. None: as in training."
    )
    max_completion_length: Annotated[int, Range(at_least=1)] = option(
        512, "Maximum tokens of a completion, including its end token."
    )
    temperature: Annotated[float, Range(at_least=0)] = option(
        1.0, "Divides the logits, in the sampler and in the loss alike. 0 chooses the most likely token."
    )
    generation_kwargs: dict[str, Any] | str | None = option(
        None,
        "Further options of sampling, as in TRL: temperature, top_p, top_k, min_p, repetition_penalty. They override the options of "
        "the same names; another key is an error.",
    )
    top_p: Annotated[float, Range(above=0, at_most=1)] = option(
        1.0, "Keep the most likely tokens that together have this probability; 1 keeps all."
    )
    top_k: Annotated[int, Range(at_least=0)] = option(0, "Keep this many of the most likely tokens; 0 keeps all.")
    min_p: Annotated[float | None, Range(at_least=0, at_most=1)] = option(
        None, "Keep tokens with at least this share of the most likely token's probability."
    )
    repetition_penalty: Annotated[float, Range(above=0)] = option(
        1.0, "Values above 1 make tokens of the prompt and of the completion so far less likely."
    )


GENERATION_KWARGS = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")},
    "max_new_tokens": "max_completion_length",
}
"""Key of `generation_kwargs` → the option that it overrides."""


def apply_generation_kwargs(config: SamplingOptions) -> None:
    """Set the options that `generation_kwargs` overrides, before they are checked.

    Raises:
        ConfigError: a key is no option of the sampler.
    """
    read_json(config, [each for each in declarations(type(config)) if each.name == "generation_kwargs"])
    given: Any = config.generation_kwargs or {}
    for key, value in given.items():
        if key not in GENERATION_KWARGS:
            raise ConfigError(
                f"generation_kwargs[{key!r}] is no option of the sampler.{nearest(key, GENERATION_KWARGS)} "
                f"Options: {', '.join(GENERATION_KWARGS)}."
            )
        setattr(config, GENERATION_KWARGS[key], value)


def narrows(config: SamplingOptions) -> bool:
    """Whether completions are sampled from another distribution than the policy's own at this temperature."""
    return config.top_p < 1 or config.top_k > 0 or bool(config.min_p) or config.repetition_penalty != 1
