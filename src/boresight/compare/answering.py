"""One saved model answers questions, with the code of training: the same prompts, the same sampler."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import find_adapter_config_file

from boresight.compare.answers import Answer
from boresight.compare.with_vllm import check_can_ask, sampled_by_vllm
from boresight.data.encode import Encoder
from boresight.errors import ConfigError, ModelError
from boresight.model.load import load_model, load_processor, model_facts
from boresight.model.vision import VisionEncoder, join_features
from boresight.modules import unwrap
from boresight.option_checks import check_options
from boresight.rollout.hf import HFSampler
from boresight.rollout.options import SamplingOptions
from boresight.rollout.sampler import sampling_settings
from boresight.trainer.fingerprint import saved_model_digest
from boresight.trainer.reasoning import think_state
from boresight.types import Group, Row, SamplingSettings


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    """How every model is asked."""

    max_completion_length: int = 512
    """Most tokens of an answer, its end token included."""
    temperature: float = 0.0
    """0 takes the likeliest token; above 0, answers are sampled."""
    top_p: float = 1.0
    seed: int = 0
    """Of the sampling: an answer depends on the seed and its question's row, not on the other questions."""
    num_samples: int = 1
    """Answers of a question, for pass@k; more than one need a temperature above 0."""
    batch_size: int = 16
    """Questions that are answered together; it changes no answer."""
    dtype: str = "auto"
    """Of the weights; auto is the checkpoint's."""
    min_pixels: int | None = None
    max_pixels: int | None = None
    """Of an image, as in training."""
    use_vllm: bool = False
    """Whether vLLM answers, in a process of its own for each model, and not transformers. All questions are one batch."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size}: it must be at least 1.")
        if self.num_samples < 1:
            raise ConfigError(f"num_samples={self.num_samples}: it must be at least 1.")
        if self.num_samples > 1 and not self.temperature:
            raise ConfigError(
                f"num_samples={self.num_samples} asks for the same greedy answer {self.num_samples} times: "
                "set a temperature above 0, such as 1."
            )
        if self.use_vllm and (self.min_pixels is not None or self.max_pixels is not None):
            raise ConfigError(
                "use_vllm takes the sizes of images from the model's folder: leave out min_pixels and max_pixels."
            )
        self.sampling()

    def sampling(self) -> SamplingSettings:
        """The sampler's settings.

        Raises:
            ConfigError: an option is outside its range.
        """
        config = SamplingOptions(
            num_generations=self.num_samples,
            max_completion_length=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
        )
        check_options(config)
        return sampling_settings(config, seed=self.seed)

    def described(self) -> dict[str, str]:
        """All that an answer depends on beside model and question, under readable names."""
        sampled = {"temperature": f"{self.temperature:g}"}
        if self.temperature:
            sampled |= {"top_p": f"{self.top_p:g}", "seed": str(self.seed)}
        if self.num_samples > 1:
            sampled["num_samples"] = str(self.num_samples)
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return (
            {"max_completion_length": str(self.max_completion_length)}
            | sampled
            | {"dtype": self.dtype}
            | ({"engine": "vllm"} if self.use_vllm else {})
            | {name: str(value) for name, value in limits.items() if value is not None}
        )


def source_digest(source: str) -> str:
    """SHA-256 of a saved model's weights and configuration; for an adapter, its own and its base model's.

    Raises:
        ModelError: there is no such model.
    """
    try:
        base = _base_of_adapter(source)
        return saved_model_digest(source, {}) + (saved_model_digest(base, {}) if base else "")
    except OSError as error:
        raise ModelError(
            f"There is no model at {source!r} (neither a folder nor a hub id that can be reached): {error}"
        ) from error


def answer(source: str, rows: Sequence[Row], settings: AnswerSettings) -> Iterator[dict[int, list[Answer]]]:
    """`num_samples` answers to each row, a batch at a time, by their places in `rows`.

    The model stays in memory until the last batch is consumed.

    Args:
        source: a folder or a hub id, of a model or of an adapter.
        rows: their prompts are asked.
        settings: how to ask.

    Raises:
        ModelError: there is no such model, or its processor does not go with it.
        DataError: a row does not suit the model's template or processor.
    """
    base = _base_of_adapter(source)
    if settings.use_vllm:
        check_can_ask(source, is_adapter=base is not None)
    model: Any = load_model(source, dtype=settings.dtype)
    has_processor = base is None or (Path(source) / "processor_config.json").exists()
    processor = load_processor(None, model, source if has_processor else base)
    facts = model_facts(model, processor)
    encoder = Encoder(processor, facts=facts, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels)
    if settings.use_vllm:
        del model  # only its facts were needed here
        prompts = [encoder.prompt(row) for row in rows]
        groups = sampled_by_vllm(source, prompts, settings.sampling(), facts, encoder.tokenizer, dtype=settings.dtype)
        yield {place: _answers_of(group, encoder) for place, group in enumerate(groups)}
        return
    # Frozen, so that the vision tower encodes an image once, however many questions ask about it.
    model.requires_grad_(False).eval().to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    vision = VisionEncoder(unwrap(model))
    sampler = HFSampler(
        lambda: model,
        facts,
        encoder.tokenizer,
        features=lambda prompts: join_features(vision([each for prompt in prompts for each in prompt.image_sets])),
    )
    for start in range(0, len(rows), settings.batch_size):
        prompts = [encoder.prompt(row) for row in rows[start : start + settings.batch_size]]
        try:
            groups = sampler.sample(prompts, settings.sampling())
        except torch.OutOfMemoryError as error:
            error.add_note("boresight: lower --batch_size, --max_pixels or --max_completion_length.")
            raise
        yield {start + place: _answers_of(group, encoder) for place, group in enumerate(groups)}


def _answers_of(group: Group, encoder: Encoder) -> list[Answer]:
    try:
        sizes = tuple(encoder.model_sizes(group.prompt))
    except ModelError:
        sizes = None  # tiles have no single size; a reward that needs it raises its own error
    opened = think_state(group.prompt, encoder.tokenizer) == "opened"
    return [
        Answer(completion.text, tuple(completion.ids.tolist()), completion.truncated, sizes, think_opened=opened)
        for completion in group.completions
    ]


def _base_of_adapter(source: str) -> str | None:
    """A saved adapter's base model; None where `source` is a model."""
    path = find_adapter_config_file(source)
    if path is None:
        return None
    config: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return config["base_model_name_or_path"]
