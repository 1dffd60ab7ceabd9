"""A saved model's answers by vLLM, in a process of its own, which ends with the last answer and frees all that it held.

`python -m boresight.rollout.vllm.saved FOLDER ASKED ANSWERS` is that process. It knows vLLM and no model of transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from boresight.errors import EngineError
from boresight.rollout.vllm.engine import Request
from boresight.rollout.vllm.local import ON_CPU

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The engine must not take its parent for one of its ranks."""


class SavedAnswer(TypedDict):
    """vLLM's answer to one request."""

    prompt: list[int]
    """The prompt as vLLM expanded its images."""
    prompt_logp: list[float] | None
    """The log-probability of each of its tokens after the first; None unless `prompt_logprobs` asked for them."""
    completions: list[tuple[list[int], list[float]]]
    """Ids and log-probabilities; without the latter, unless `logprobs` asked for them."""


def vllm_is_here() -> bool:
    return importlib.util.find_spec("vllm") is not None


def ask_saved(
    folder: str | Path, requests: Sequence[Request], *, timeout_s: float | None = None, **engine: Any
) -> list[SavedAnswer]:
    """Load a saved folder with vLLM, and ask it.

    Args:
        folder: a model, not an adapter.
        requests: sampled as each says.
        timeout_s: for loading and answering; None: no limit.
        engine: further arguments of vLLM's `LLM`.

    Raises:
        EngineError: it cannot be loaded, or does not answer; the message ends with vLLM's own error.
    """
    with tempfile.TemporaryDirectory() as scratch:
        asked, answers = Path(scratch, "asked.safetensors"), Path(scratch, "answers.json")
        plan = {"engine": engine, "sampling": [dict(request.sampling) for request in requests]}
        save_file(_tensors(requests), asked, {"plan": json.dumps(plan)})
        command = [sys.executable, "-m", "boresight.rollout.vllm.saved", *map(str, (folder, asked, answers))]
        environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        try:
            ran = subprocess.run(
                command, env=environment, timeout=timeout_s, capture_output=True, text=True, errors="replace"
            )
        except subprocess.TimeoutExpired:
            raise EngineError(f"vLLM does not answer for {folder} within {timeout_s:g} s.") from None
        why = ran.stderr[-500:] or f"exit code {ran.returncode}"
        found = json.loads(answers.read_text()) if answers.exists() else why
    if isinstance(found, str):
        raise EngineError(f"vLLM does not answer for {folder}: {found}")
    return found


def _tensors(requests: Sequence[Request]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for place, request in enumerate(requests):
        found[f"{place}.ids"] = torch.tensor(list(request.ids), dtype=torch.long)
        for number, image in enumerate(request.images):
            found[f"{place}.image.{number}"] = torch.from_numpy(np.array(image))
    return found


# ---- The process of vLLM -------------------------------------------------------------------------------------------------------------


def main(folder: str, asked: str, answers: str) -> None:
    """Answer the requests in the file `asked` into the file `answers`."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    with safe_open(asked, "pt") as file:
        plan: dict[str, Any] = json.loads(file.metadata()["plan"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
    prompts: list[Any] = []
    for place in range(len(plan["sampling"])):
        count = sum(name.startswith(f"{place}.image.") for name in tensors)
        images = [Image.fromarray(tensors[f"{place}.image.{number}"].numpy()) for number in range(count)]
        data = {"multi_modal_data": {"image": images}} if images else {}
        prompts.append({"prompt_token_ids": tensors[f"{place}.ids"].tolist(), **data})
    on_cpu: dict[str, Any] = {} if torch.cuda.is_available() else ON_CPU
    engine: Any = LLM(folder, generation_config="vllm", disable_log_stats=True, **on_cpu, **plan["engine"])
    settings = [SamplingParams(**_read(sampling), detokenize=False) for sampling in plan["sampling"]]
    outputs = engine.generate(prompts, settings, use_tqdm=False)
    Path(answers).write_text(json.dumps([_answer(output) for output in outputs]))


def _read(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `SamplingParams` as they were before JSON, whose keys are texts."""
    bias = sampling.get("logit_bias")
    return {**sampling, "logit_bias": {int(token): value for token, value in bias.items()}} if bias else dict(sampling)


def _answer(output: Any) -> SavedAnswer:
    prompt = list(output.prompt_token_ids)
    completions = [
        (list(each.token_ids), _chosen(each.token_ids, each.logprobs or ()))
        for each in sorted(output.outputs, key=lambda one: one.index)
    ]
    scored = output.prompt_logprobs
    return {
        "prompt": prompt,
        "prompt_logp": None if scored is None else _chosen(prompt[1:], scored[1:]),
        "completions": completions,
    }


def _chosen(ids: Sequence[int], candidates: Sequence[Any]) -> list[float]:
    """The log-probabilities of these tokens; empty where none were asked for."""
    return [found[token].logprob for token, found in zip(ids, candidates, strict=True)] if candidates else []


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
