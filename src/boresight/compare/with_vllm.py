"""A saved model's answers by vLLM, for the comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from boresight.data.images import decode
from boresight.errors import ConfigError
from boresight.rollout.outputs import EngineOutput, OutputReader
from boresight.rollout.vllm.engine import Request
from boresight.rollout.vllm.saved import ask_saved, vllm_is_here
from boresight.sampling import SamplingSettings
from boresight.types import Group, ModelFacts, Prompt

BANNED = -100.0
"""Added to the logits of tokens that only a processor may place."""


def check_can_ask(source: str, *, is_adapter: bool) -> None:
    """Refuse what vLLM cannot answer for.

    Raises:
        ConfigError: vLLM is not installed, or `source` is an adapter.
    """
    if not vllm_is_here():
        raise ConfigError("--use_vllm needs vLLM, which is not installed: pip install 'boresight[vllm]', or drop it.")
    if is_adapter:
        raise ConfigError(
            f"--use_vllm: {source} is an adapter. Merge it first: boresight export {source} --merge --output {Path(source).name}-merged"
        )


def sampled_by_vllm(
    folder: str,
    prompts: Sequence[Prompt],
    settings: SamplingSettings,
    facts: ModelFacts,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dtype: str,
) -> list[Group]:
    """`settings.num_completions` completions of each prompt. Greedy ones are those of transformers up to rounding.

    Args:
        folder: a model, not an adapter.
        facts: stop ids, and ids that must not be sampled.
        dtype: of the weights; auto is the checkpoint's.

    Raises:
        EngineError: vLLM cannot load the folder, or read other prompts than the processor made.
    """
    most_images = max(len(_images(prompt)) for prompt in prompts)
    engine: dict[str, Any] = {"limit_mm_per_prompt": {"image": most_images, "video": 0}} if most_images else {}
    answers = ask_saved(
        folder,
        [_request(prompt, settings, facts) for prompt in prompts],
        dtype=dtype,
        max_model_len=max(len(prompt.ids) for prompt in prompts) + settings.max_completion_length,
        **engine,
    )
    reader = OutputReader("vLLM", facts, tokenizer)
    return [
        reader.group(
            prompt, EngineOutput(found["prompt"], found["completions"]), num_completions=settings.num_completions
        )
        for prompt, found in zip(prompts, answers, strict=True)
    ]


def _request(prompt: Prompt, settings: SamplingSettings, facts: ModelFacts) -> Request:
    sampling = {
        "n": settings.num_completions,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p or 0.0,
        "repetition_penalty": settings.repetition_penalty,
        "seed": _seed(settings.seed, prompt.row.index),
        "max_tokens": settings.max_completion_length,
        "stop_token_ids": list(facts.stop_ids),
        "ignore_eos": True,  # stop_token_ids lists all end tokens
        "logit_bias": dict.fromkeys(facts.modality_ids, BANNED),
        "logprobs": 0,  # only of the sampled token
    }
    return Request(prompt.unexpanded_ids.tolist(), [decode(image) for image in _images(prompt)], sampling)


def _seed(seed: int | None, row: int) -> int:
    """Of a question, whatever else is asked."""
    return int.from_bytes(hashlib.sha256(f"{seed or 0} {row}".encode()).digest()[:4]) >> 1


def _images(prompt: Prompt) -> list[Any]:
    return [image for each in prompt.image_sets for image in each.images]
