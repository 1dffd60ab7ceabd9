"""One saved model answers questions, with the code of training: the same prompts, the same sampler."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import find_adapter_config_file

from boresight.compare.answers import Answer
from boresight.compare.with_tools import ToolSettings, tool_loop
from boresight.compare.with_vllm import check_can_ask, sampled_by_vllm
from boresight.data.encode import Encoder
from boresight.errors import ConfigError, ModelError
from boresight.model.load import load_model, load_processor, model_facts
from boresight.model.vision import VisionEncoder
from boresight.modules import unwrap
from boresight.option_checks import check_options
from boresight.report.turns import shown_turns
from boresight.rollout.hf import HFSampler
from boresight.rollout.options import SamplingOptions
from boresight.rollout.sampler import sampling_settings
from boresight.sampling import SamplingSettings
from boresight.trainer.fingerprint import saved_model_digest
from boresight.trainer.reasoning import think_state
from boresight.trainer.rollouts.turns import Branch, ToolLoop
from boresight.types import Completion, EncodedImage, Group, Prompt, Row

KeepImage = Callable[[EncodedImage], str]
"""Keeps an image that a tool returned, and returns its file name."""


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
    tools: ToolSettings = field(default_factory=ToolSettings)
    """The tools that models may call while they answer."""

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
        if self.use_vllm and self.tools:
            raise ConfigError(
                "use_vllm answers all questions in one call, and tools are called between turns: leave out use_vllm, or the tools."
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
            | self.tools.described()
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


def answer(
    source: str, rows: Sequence[Row], settings: AnswerSettings, *, keep_image: KeepImage | None = None
) -> Iterator[dict[int, list[Answer]]]:
    """`num_samples` answers to each row, a batch at a time, by their places in `rows`.

    The model stays in memory until the last batch is consumed.

    Args:
        source: a folder or a hub id, of a model or of an adapter.
        rows: their prompts are asked.
        settings: how to ask.
        keep_image: for images that tools return.

    Raises:
        ModelError: there is no such model, its processor does not go with it, or its chat template renders no tools.
        DataError: a row does not suit the model's template or processor.
    """
    yield from SavedModel(source, settings).answers(rows, settings.sampling(), keep_image=keep_image)


class SavedModel:
    """A saved model in memory, or behind vLLM, which loads it for each call of `answers`.

    Args:
        source: a folder or a hub id, of a model or of an adapter.
        settings: how its questions are read, and who answers; the sampling is that of each call.

    Raises:
        ModelError: there is no such model, or its processor does not go with it.
        ConfigError: vLLM is asked for, and cannot answer for this model.
    """

    def __init__(self, source: str, settings: AnswerSettings) -> None:
        self.source, self.settings = source, settings
        base = _base_of_adapter(source)
        if settings.use_vllm:
            check_can_ask(source, is_adapter=base is not None)
        model: Any = load_model(source, dtype=settings.dtype)
        has_processor = base is None or (Path(source) / "processor_config.json").exists()
        processor = load_processor(None, model, source if has_processor else base)
        self.facts = model_facts(model, processor)
        self.environments = settings.tools.environments()
        self.encoder = Encoder(
            processor,
            facts=self.facts,
            min_pixels=settings.min_pixels,
            max_pixels=settings.max_pixels,
            tools=self.environments.schemas if self.environments else None,
        )
        self.sampler = None
        if settings.use_vllm:
            # Only the model's facts were needed here. Its type is one of them: vLLM's own `auto` takes 16 bits where a checkpoint has 32.
            self.dtype = str(model.dtype).removeprefix("torch.") if settings.dtype == "auto" else settings.dtype
            return
        # Frozen, so that the vision tower encodes an image once, however many questions ask about it.
        model.requires_grad_(False).eval().to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
        self.sampler = HFSampler(
            lambda: model,
            self.facts,
            self.encoder.tokenizer,
            features=VisionEncoder(unwrap(model)).outputs,
        )

    def answers(
        self, rows: Sequence[Row], sampling: SamplingSettings, *, keep_image: KeepImage | None = None
    ) -> Iterator[dict[int, list[Answer]]]:
        """`sampling.num_completions` answers to each row, a batch at a time, by their places in `rows`.

        Raises:
            ModelError: the model's chat template renders no tools.
            DataError: a row does not suit the model's template or processor.
        """
        if self.sampler is None:
            prompts = [self.encoder.prompt(row) for row in rows]
            groups = sampled_by_vllm(
                self.source, prompts, sampling, self.facts, self.encoder.tokenizer, dtype=self.dtype
            )
            yield {place: _answers_of(group, self.encoder) for place, group in enumerate(groups)}
            return
        environments, options = self.environments, self.settings.tools.options
        with tool_loop(self.sampler, self.encoder, environments, options) if environments else nullcontext() as loop:
            for start in range(0, len(rows), self.settings.batch_size):
                prompts = [self.encoder.prompt(row) for row in rows[start : start + self.settings.batch_size]]
                try:
                    if loop is None:
                        groups = self.sampler.sample(prompts, sampling)
                        found = [_answers_of(group, self.encoder) for group in groups]
                    else:
                        found = _answers_in_turns(loop, prompts, sampling, keep_image)
                except torch.OutOfMemoryError as error:
                    error.add_note("boresight: lower --batch_size, --max_pixels or --max_completion_length.")
                    raise
                yield {start + place: own for place, own in enumerate(found)}


def _answers_in_turns(
    loop: ToolLoop, prompts: Sequence[Prompt], settings: SamplingSettings, keep_image: KeepImage | None
) -> list[list[Answer]]:
    """Each prompt's answers, in which tools were called."""
    turns = loop.sample(prompts, settings)
    loop.close(turns)
    branches = iter(turns.branches)
    return [
        [
            _with_turns(plain, completion, next(branches), keep_image)
            for plain, completion in zip(_answers_of(group, loop.encoder), group.completions, strict=True)
        ]
        for group in turns.groups
    ]


def _with_turns(plain: Answer, completion: Completion, branch: Branch, keep_image: KeepImage | None) -> Answer:
    images = {image.digest: image for each in completion.image_sets for image in each.images}
    names = {digest: "" if keep_image is None else keep_image(image) for digest, image in images.items()}
    return replace(
        plain,
        messages=completion.messages,
        turns=tuple(shown_turns(completion, names) or ()),
        num_calls=len(branch.outcomes),
        num_failed_calls=sum(outcome.kind != "ok" for outcome in branch.outcomes),
        ended=branch.ended,
    )


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
