"""Run folders, written by what writes them in training: the completion store and the line files."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from boresight.report import CompletionStore
from boresight.report.jsonl import StepLines
from boresight.types import Completion, EncodedImage, Group, Prompt, Row

K = 4
NOTHING = torch.tensor([], dtype=torch.long)
COLOURS = ("red", "green", "blue", "teal", "gold", "gray")


def byte_tokenizer() -> Tokenizer:
    """One token a byte."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={char: place for place, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    return tokenizer


def image(colour: str, side: int = 64) -> EncodedImage:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return EncodedImage(buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest(), (side, side))


def write_run(
    folder: Path,
    *,
    num_steps: int = 3,
    num_prompts: int = 2,
    reward_name: str = "exact_answer_reward",
    poison: str = "",
    right: str | None = None,
) -> Path:
    """A policy run whose every number can be told from its place.

    Completion k of prompt g at step s says "answer k of prompt g at step s" and has the reward s + k / 10; prompt 0 has the same reward
    everywhere. The last completion of prompt 1 is truncated, its first one unscored, and only prompt 1 has images, two of them.

    Args:
        poison: put into every text and name.
        right: the right answer of every row, which completion 0 of each prompt gives; the others answer "wrong".
    """
    tokenizer, chooser = byte_tokenizer(), random.Random(0)
    store = CompletionStore(folder, tokenizer=SimpleNamespace(backend_tokenizer=tokenizer))
    metrics, timeline, verdicts = (StepLines(folder / f"{name}.jsonl") for name in ("metrics", "timeline", "verdicts"))
    for step in range(1, num_steps + 1):
        groups, rewards = [], []
        for place in range(num_prompts):
            shown = (image(COLOURS[place % 6]), image(COLOURS[step % 6], 200)) if place else ()
            asked = [
                {
                    "role": "user",
                    "content": [
                        *[{"type": "image"} for _ in shown],
                        {"type": "text", "text": f"question {place} {poison}"},
                    ],
                }
            ]
            completions = []
            for k in range(K):
                text = f"answer {k} of prompt {place} at step {step} {poison}"
                ids = torch.tensor(tokenizer.encode(text).ids)
                logp = torch.tensor([-chooser.expovariate(2) for _ in ids])
                completions.append(
                    Completion(ids, torch.ones(len(ids), dtype=torch.bool), text, logp, place == 1 and k == K - 1)
                )
                rewards.append(float(step) if place == 0 else float("nan") if place == 1 and k == 0 else step + k / 10)
            columns = {} if right is None else {"solution": right, "level": place, f"source{poison}": f"book {poison}"}
            row = Row(100 * step + place, asked, (), shown, columns)
            groups.append(Group(Prompt(row, NOTHING, NOTHING, {}, NOTHING), tuple(completions)))
        values = torch.tensor(rewards)
        answers = None if right is None else [(right if k == 0 else "wrong", right) for _ in groups for k in range(K)]
        store.add(
            step, groups, rewards={f"{reward_name}{poison}": values, "format_reward": torch.ones(len(values))}, reward=values,
            advantage=values - values.nanmean(), answers=answers,
            logp=[each.sampler_logp.tolist() for group in groups for each in group.completions],  # pyright: ignore[reportOptionalMemberAccess]
            extra={f"parsed{poison}": [f"said {poison}"] * len(values)},
        )  # fmt: skip
        metrics.add(step, {
            "loss": 1 / step, "reward": float(values.nanmean()), f"rewards/{reward_name}{poison}/mean": float(step), "kl": 0.01 * step,
            f"own{poison}": 1.0, "work/prompt_tokens": 100, "work/unshared_prompt_tokens": 400, "work/vision_encodes": 2,
            "work/unshared_vision_encodes": 8,
        })  # fmt: skip
        timeline.add(step, {"sample_s": 2.0, "update_s": 1.0, "other_s": 0.5})
        verdicts.add(step, {"verdict": f"learning{poison}", "text": f"The reward rose. {poison}"})
    return folder
