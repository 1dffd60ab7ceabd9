"""Whether vLLM computes the numbers of a saved folder: its log-probabilities of the probe prompts, in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from boresight.data.images import decode
from boresight.errors import EngineError
from boresight.export.verify import Probe
from boresight.rollout.synced import AGREEMENT
from boresight.rollout.vllm.engine import Request
from boresight.rollout.vllm.saved import SavedAnswer, ask_saved

MAX_SECONDS = 1800
"""How long vLLM may take to load the folder and answer."""


@dataclass(frozen=True, slots=True)
class WithVllm:
    """What vLLM made of a folder."""

    gap: float | None
    """Mean difference of log-probabilities in nats; None if vLLM did not answer."""
    bound: float
    num_tokens: int
    error: str = ""

    def __str__(self) -> str:
        if self.gap is None:
            return f"vLLM does not load it, or does not answer: {self.error}"
        figure = f"log-probabilities of {self.num_tokens} tokens differ by {self.gap:.1e} on average"
        if self.gap <= self.bound:
            return f"vLLM loads it; {figure} (≤ {self.bound:g})"
        return f"vLLM computes another model: {figure}, where at most {self.bound:g} is expected. Do not serve it with this vLLM"


def verify_with_vllm(folder: Path, probes: Sequence[Probe], expected: Sequence[Tensor], dtype: str) -> WithVllm:
    """Load a folder with vLLM, and compare its log-probabilities with the trained model's.

    Args:
        expected: [T] for each probe, as `log_probs` of the trained model returns them.
        dtype: what vLLM computes in: the dtype of the folder's weights.
    """
    return compared(answers_of(folder, probes, dtype), probes, expected, AGREEMENT[dtype])


def compared(
    answers: Sequence[SavedAnswer] | str, probes: Sequence[Probe], expected: Sequence[Tensor], bound: float
) -> WithVllm:
    """vLLM's answers beside the trained model's numbers.

    Args:
        answers: as `answers_of` returns them.
        bound: the largest mean difference that is not another model's, in nats.
    """
    num_tokens = sum(map(len, expected))
    if isinstance(answers, str):
        return WithVllm(None, bound, num_tokens, answers)
    for answer, probe in zip(answers, probes, strict=True):
        one, other = answer["prompt"], probe.prompt.ids.tolist()
        if one != other:
            where = next(
                (place for place, ids in enumerate(zip(one, other, strict=False)) if len({*ids}) > 1), len(one)
            )
            error = f"its prompt has {len(one)} tokens, the processor's {len(other)}; they differ from token {where} on"
            return WithVllm(None, bound, num_tokens, error)
    far = [(torch.tensor(answer["prompt_logp"]) - logp).abs() for answer, logp in zip(answers, expected, strict=True)]
    return WithVllm(float(torch.cat(far).mean()), bound, num_tokens)


def answers_of(folder: Path, probes: Sequence[Probe], dtype: str) -> list[SavedAnswer] | str:
    """vLLM's answer to each probe, or why there is none."""
    asked = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
    requests = [
        Request(
            probe.prompt.unexpanded_ids.tolist(),
            [decode(image) for each in probe.prompt.image_sets for image in each.images],
            asked,
        )
        for probe in probes
    ]
    longest = max(len(probe.prompt.ids) for probe in probes) + 1
    try:
        return ask_saved(folder, requests, timeout_s=MAX_SECONDS, dtype=dtype, max_model_len=longest, max_num_seqs=4)
    except EngineError as error:
        return str(error)
