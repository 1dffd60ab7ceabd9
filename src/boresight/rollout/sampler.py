"""The options of sampling, and what every sampler is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from boresight.errors import ConfigError
from boresight.types import SamplingSettings


@dataclass
class SamplingConfig:
    """How completions are drawn. Names and defaults are TRL's (`GRPOConfig`)."""

    num_generations: int = field(default=8, metadata={"help": "Completions of each prompt: the group's size, G or K."})
    num_generations_eval: int | None = field(
        default=None, metadata={"help": "Completions of each prompt in evaluation; None: as in training."}
    )
    max_completion_length: int = field(
        default=512, metadata={"help": "Most tokens of a completion, its end token included."}
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Divides the logits, in the sampler and in the loss alike. 0 takes the likeliest token."},
    )
    top_p: float = field(
        default=1.0, metadata={"help": "Keep the likeliest tokens that together have this probability; 1 keeps all."}
    )
    top_k: int = field(default=0, metadata={"help": "Keep this many of the likeliest tokens; 0 keeps all."})
    min_p: float | None = field(
        default=None, metadata={"help": "Keep tokens with at least this share of the likeliest one's probability."}
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata={"help": "Above 1, tokens of the prompt and of the completion so far become less likely."},
    )


def sampling_settings(config: SamplingConfig, *, evaluating: bool = False, seed: int | None = None) -> SamplingSettings:
    """What a sampler is asked for, checked.

    Args:
        evaluating: use `num_generations_eval` where it is set.
        seed: None draws from torch's global generator, which checkpoints save.

    Raises:
        ConfigError: an option is outside its range; the message names it and the range.
    """
    k = (
        config.num_generations_eval
        if evaluating and config.num_generations_eval is not None
        else config.num_generations
    )
    _require(k >= 1, "num_generations_eval" if evaluating else "num_generations", k, "at least 1")
    length = config.max_completion_length
    _require(length >= 1, "max_completion_length", length, "at least 1 token")
    _require(0 <= config.temperature < math.inf, "temperature", config.temperature, "0 (greedy) or more")
    _require(0 < config.top_p <= 1, "top_p", config.top_p, "above 0, up to 1 (keeps all)")
    _require(config.top_k >= 0, "top_k", config.top_k, "0 (keeps all) or more")
    _require(config.min_p is None or 0 <= config.min_p <= 1, "min_p", config.min_p, "None or between 0 and 1")
    _require(
        0 < config.repetition_penalty < math.inf, "repetition_penalty", config.repetition_penalty, "above 0 (1: none)"
    )
    return SamplingSettings(
        num_completions=k,
        max_completion_length=length,
        temperature=float(config.temperature),
        top_p=float(config.top_p),
        top_k=config.top_k,
        min_p=None if config.min_p is None else float(config.min_p),
        repetition_penalty=float(config.repetition_penalty),
        seed=seed,
    )


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{name}={value!r}: it must be {allowed}.")
