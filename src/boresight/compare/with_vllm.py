"""A saved model's answers by vLLM, in a process of its own, which ends with the last answer and frees all that it held.

`python -m boresight.compare.with_vllm FOLDER ASKED ANSWERS` is that process. It knows vLLM and no model of transformers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from boresight.data.images import decode
from boresight.errors import ConfigError, EngineError
from boresight.rollout.outputs import EngineOutput, OutputReader
from boresight.rollout.vllm.local import ON_CPU
from boresight.types import Group, ModelFacts, Prompt, SamplingSettings

BANNED = -100.0
"""Added to the logits of tokens that only a processor may place."""

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def check_can_ask(source: str, *, is_adapter: bool) -> None:
    """Refuse what vLLM cannot answer for.

    Raises:
        ConfigError: vLLM is not installed, or `source` is an adapter.
    """
    if importlib.util.find_spec("vllm") is None:
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
    asked = {
        "dtype": dtype,
        "max_tokens": settings.max_completion_length,
        "prompts": len(prompts),
        "longest": max(len(prompt.ids) for prompt in prompts) + settings.max_completion_length,
        "most_images": max(len(_images(prompt)) for prompt in prompts),
        "seeds": [_seed(settings.seed, prompt.row.index) for prompt in prompts],
        "sampling": {
            "n": settings.num_completions,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "stop_token_ids": list(facts.stop_ids),
            "logit_bias": {str(token): BANNED for token in facts.modality_ids},
        },
    }
    answers = _asked_apart(folder, prompts, asked)
    reader = OutputReader("vLLM", facts, tokenizer)
    return [
        reader.group(
            prompt, EngineOutput(found["prompt"], found["completions"]), num_completions=settings.num_completions
        )
        for prompt, found in zip(prompts, answers, strict=True)
    ]


def _seed(seed: int | None, row: int) -> int:
    """Of a question, whatever else is asked."""
    return int.from_bytes(hashlib.sha256(f"{seed or 0} {row}".encode()).digest()[:4]) >> 1


def _images(prompt: Prompt) -> list[Any]:
    return [image for each in prompt.image_sets for image in each.images]


def _asked_apart(folder: str, prompts: Sequence[Prompt], asked: dict[str, Any]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        path, answers = Path(scratch, "asked.safetensors"), Path(scratch, "answers.json")
        save_file(_as_tensors(prompts), path, {"asked": json.dumps(asked)})
        command = [sys.executable, "-m", "boresight.compare.with_vllm", folder, str(path), str(answers)]
        # Its engine must not take this process for one of its ranks.
        environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        found = (
            json.loads(answers.read_text()) if answers.exists() else ran.stderr[-500:] or f"exit code {ran.returncode}"
        )
    if isinstance(found, str):
        raise EngineError(f"vLLM does not answer for {folder}: {found}")
    return found


def _as_tensors(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for place, prompt in enumerate(prompts):
        found[f"{place}.ids"] = prompt.unexpanded_ids.clone()
        for number, image in enumerate(_images(prompt)):
            found[f"{place}.image.{number}"] = torch.from_numpy(np.array(decode(image)))
    return found


# ---- The process of vLLM -------------------------------------------------------------------------------------------------------------


def main(folder: str, path: str, answers: str) -> None:
    """Answer the prompts: for each, the prompt as vLLM expanded it, and the ids and log-probabilities of its completions."""
    from PIL import Image
    from safetensors import safe_open
    from vllm import LLM, SamplingParams

    with safe_open(path, "pt") as file:
        asked: dict[str, Any] = json.loads(file.metadata()["asked"])
    tensors = load_file(path)
    prompts: list[Any] = []
    for place in range(asked["prompts"]):
        count = sum(name.startswith(f"{place}.image.") for name in tensors)
        images = [Image.fromarray(tensors[f"{place}.image.{number}"].numpy()) for number in range(count)]
        data = {"multi_modal_data": {"image": images}} if images else {}
        prompts.append({"prompt_token_ids": tensors[f"{place}.ids"].tolist(), **data})
    own: dict[str, Any] = {} if torch.cuda.is_available() else ON_CPU
    if asked["most_images"]:
        own["limit_mm_per_prompt"] = {"image": asked["most_images"], "video": 0}
    llm = LLM(
        folder,
        dtype=asked["dtype"],
        max_model_len=asked["longest"],
        generation_config="vllm",
        disable_log_stats=True,
        **own,
    )  # pyright: ignore[reportArgumentType]
    bias = {int(token): value for token, value in asked["sampling"].pop("logit_bias").items()}
    settings = [
        SamplingParams(
            **asked["sampling"],
            seed=seed,
            max_tokens=asked["max_tokens"],
            logit_bias=bias,
            ignore_eos=True,  # stop_token_ids lists all end tokens
            detokenize=False,
            logprobs=0,
        )
        for seed in asked["seeds"]
    ]
    outputs = llm.generate(prompts, settings, use_tqdm=False)
    Path(answers).write_text(json.dumps([_answer(output) for output in outputs]))


def _answer(output: Any) -> dict[str, Any]:
    """Log-probabilities stay within JSON: a token that was sampled has one."""
    completions = []
    for each in sorted(output.outputs, key=lambda one: one.index):
        ids = list(each.token_ids)
        completions.append([ids, [found[token].logprob for token, found in zip(ids, each.logprobs, strict=True)]])
    return {"prompt": list(output.prompt_token_ids), "completions": completions}


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
