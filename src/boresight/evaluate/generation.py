"""A task's generation options as settings of the sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boresight.errors import ConfigError
from boresight.option_checks import check_options
from boresight.rollout.options import SamplingOptions
from boresight.rollout.sampler import sampling_settings
from boresight.sampling import SamplingSettings

MAX_NEW_TOKENS = 1024
"""Where a task names no limit; lmms-eval's own models take the same."""

SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
READ = frozenset({*SAMPLING, "max_new_tokens", "until", "stop_sequences", "do_sample", "num_beams", "seed"})
WITHOUT_EFFECT = frozenset({"image_aspect_ratio", "use_cache"})
"""Options of other models' image processing and of memory."""

ADDED_STOP = "\n\n"
"""lmms-eval gives this stop to every task that names none. It would end a completion after its first paragraph, so it is no stop here, as
in lmms-eval's own adapters of Qwen models."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How a question is answered."""

    sampling: SamplingSettings
    stops: tuple[str, ...] = ()
    """A completion ends before the first of these texts."""

    def cut(self, text: str) -> str:
        """A completion's text up to its first stop."""
        return text[: min((place for stop in self.stops if (place := text.find(stop)) >= 0), default=len(text))]


def generation_of(
    options: Mapping[str, Any], task: str, *, num_completions: int = 1, max_completion_length: int | None = None
) -> Generation:
    """Read a task's `generation_kwargs`: greedy where it says `do_sample: false`, or names no temperature above 0.

    Args:
        options: the task's.
        task: its name, for errors.
        num_completions: how often each question is asked; the task's `repeats`.
        max_completion_length: instead of the task's limit.

    Raises:
        ConfigError: the task asks for beam search or for an option that the sampler lacks, or an option is outside its range.
    """
    if unknown := sorted(options.keys() - READ - WITHOUT_EFFECT):
        raise ConfigError(
            f"task {task}: generation_kwargs[{unknown[0]!r}] is no option of the sampler (those are {', '.join(sorted(READ))}): give a "
            "copy of the task without it (--include_path)."
        )
    if options.get("num_beams") not in (None, 1):
        raise ConfigError(
            f"task {task} asks for beam search (num_beams: {options['num_beams']}), which boresight's sampler does not do: give a copy of "
            "the task without it (--include_path)."
        )
    drawn = options.get("do_sample") is not False and float(options.get("temperature") or 0) > 0
    given = {name: options[name] for name in SAMPLING if drawn and options.get(name) is not None}
    config = SamplingOptions(
        num_generations=num_completions,
        max_completion_length=max_completion_length or options.get("max_new_tokens") or MAX_NEW_TOKENS,
        **{"temperature": 0.0, **given},
    )
    try:
        check_options(config)
    except ConfigError as error:
        raise ConfigError(f"task {task}, generation_kwargs: {error}") from None
    return Generation(sampling_settings(config, seed=options.get("seed") or 0), _stops(options))


def _stops(options: Mapping[str, Any]) -> tuple[str, ...]:
    found: list[str] = []
    for name in ("until", "stop_sequences"):
        value = options.get(name) or ()
        found += [value] if isinstance(value, str) else value
    return tuple(stop for stop in found if stop and stop != ADDED_STOP)
