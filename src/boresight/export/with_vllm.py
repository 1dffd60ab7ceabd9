"""Whether vLLM computes the numbers of a saved folder: its log-probabilities of the probe prompts, in a process of its own.

`python -m boresight.export.with_vllm FOLDER PROBES ANSWER` is that process. It knows vLLM and no model of transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from boresight.data.images import decode
from boresight.export.verify import Probe
from boresight.rollout.synced import AGREEMENT
from boresight.rollout.vllm.local import ON_CPU

MAX_SECONDS = 1800
"""How long vLLM may take to load the folder and answer."""


class Answer(TypedDict):
    """vLLM's numbers of one probe."""

    ids: list[int]
    """The prompt as vLLM expanded its images."""
    logp: list[float]
    """The log-probability of each token after the first."""


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


def vllm_is_here() -> bool:
    return importlib.util.find_spec("vllm") is not None


def verify_with_vllm(folder: Path, probes: Sequence[Probe], expected: Sequence[Tensor], dtype: str) -> WithVllm:
    """Load a folder with vLLM, and compare its log-probabilities with the trained model's.

    Args:
        expected: [T] for each probe, as `log_probs` of the trained model returns them.
        dtype: what vLLM computes in: the dtype of the folder's weights.
    """
    return compared(answers_of(folder, probes, dtype), probes, expected, AGREEMENT[dtype])


def compared(
    answers: Sequence[Answer] | str, probes: Sequence[Probe], expected: Sequence[Tensor], bound: float
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
        one, other = answer["ids"], probe.prompt.ids.tolist()
        if one != other:
            where = next(
                (place for place, ids in enumerate(zip(one, other, strict=False)) if len({*ids}) > 1), len(one)
            )
            error = f"its prompt has {len(one)} tokens, the processor's {len(other)}; they differ from token {where} on"
            return WithVllm(None, bound, num_tokens, error)
    far = [(torch.tensor(answer["logp"]) - logp).abs() for answer, logp in zip(answers, expected, strict=True)]
    return WithVllm(float(torch.cat(far).mean()), bound, num_tokens)


def answers_of(folder: Path, probes: Sequence[Probe], dtype: str) -> list[Answer] | str:
    """vLLM's answer to each probe, or why there is none."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answer = Path(scratch, "probes.safetensors"), Path(scratch, "answer.json")
        save_file(_as_tensors(probes), asked)
        command = [sys.executable, "-m", "boresight.export.with_vllm", *map(str, (folder, asked, answer)), dtype]
        # Its engine must not take this process for one of its ranks.
        environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        try:
            ran = subprocess.run(command, env=environment, timeout=MAX_SECONDS, capture_output=True)
        except subprocess.TimeoutExpired:
            return f"it took more than {MAX_SECONDS} s"
        return json.loads(answer.read_text()) if answer.exists() else f"its process ended with code {ran.returncode}"


RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _as_tensors(probes: Sequence[Probe]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for place, probe in enumerate(probes):
        found[f"{place}.ids"] = probe.prompt.unexpanded_ids.contiguous()
        images = [decode(image) for each in probe.prompt.image_sets for image in each.images]
        for number, image in enumerate(images):
            found[f"{place}.image.{number}"] = torch.from_numpy(np.array(image))
    return found


# ---- The process of vLLM -------------------------------------------------------------------------------------------------------------


def main(folder: str, asked: str, answer: str, dtype: str) -> None:
    """Answer the probes: the expanded prompt, and the log-probability of each of its tokens after the first."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    tensors = load_file(asked)
    count = sum(name.endswith(".ids") for name in tensors)
    prompts: list[dict[str, Any]] = []
    for place in range(count):
        images = [
            Image.fromarray(value.numpy())
            for name, value in sorted(tensors.items())
            if name.startswith(f"{place}.image.")
        ]
        data = {"multi_modal_data": {"image": images}} if images else {}
        prompts.append({"prompt_token_ids": tensors[f"{place}.ids"].tolist(), **data})
    cpu: dict[str, Any] = {} if torch.cuda.is_available() else ON_CPU
    llm = LLM(folder, dtype=dtype, max_model_len=_longest(prompts), max_num_seqs=4, disable_log_stats=True, **cpu)  # pyright: ignore[reportArgumentType]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0), use_tqdm=False)  # pyright: ignore[reportArgumentType]
    found = [_answer(output) for output in outputs]
    Path(answer).write_text(json.dumps(found))


def _answer(output: Any) -> Answer:
    ids = list(output.prompt_token_ids)
    later = zip(ids[1:], output.prompt_logprobs[1:], strict=True)
    return {"ids": ids, "logp": [candidates[id].logprob for id, candidates in later]}


def _longest(prompts: Sequence[dict[str, Any]]) -> int:
    """Room for the prompts with their images: a probe image takes at most a thousand tokens in the families that are known."""
    return max(len(prompt["prompt_token_ids"]) for prompt in prompts) + 1024


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # an engine that fails says why only in its own process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    try:
        main(*sys.argv[1:])
    except Exception as error:
        Path(sys.argv[3]).write_text(json.dumps(f"{type(error).__name__}: {error}"[:500]))
        raise
