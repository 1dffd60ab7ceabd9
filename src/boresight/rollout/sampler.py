"""Sampling settings from options, for every sampler."""

from __future__ import annotations

from boresight.rollout.options import SamplingOptions
from boresight.sampling import SamplingSettings


def sampling_settings(
    config: SamplingOptions, *, evaluating: bool = False, seed: int | None = None
) -> SamplingSettings:
    """The settings of one call of a sampler.

    Args:
        config: options that `check_options` has checked.
        evaluating: use `num_generations_eval` if it is set.
        seed: None uses torch's global generator, which checkpoints save.
    """
    in_evaluation = config.num_generations_eval if evaluating else None
    return SamplingSettings(
        num_completions=config.num_generations if in_evaluation is None else in_evaluation,
        max_completion_length=config.max_completion_length,
        temperature=float(config.temperature),
        top_p=float(config.top_p),
        top_k=config.top_k,
        min_p=None if config.min_p is None else float(config.min_p),
        repetition_penalty=float(config.repetition_penalty),
        seed=seed,
    )
