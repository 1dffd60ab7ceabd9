"""DPO and MPO on real images, from one under-trained checkpoint: what each makes of it, seed by seed.

    .venv/bin/python benchmarks/preferences.py [--seeds 0 1 2] [--json FILE] [--quick]

A small Qwen2.5-VL learns a little from easy-VQA by SFT. Asked training questions, it is often wrong: a pair is the right answer with
its description (chosen) against a wrong one that it gave itself (rejected). DPO and MPO start from that checkpoint, on the same pairs,
for the same steps. Measured on test images: accuracy and repetition of greedy answers, and how often held-out pairs are told
apart; and during training, the log-probability of chosen answers, which DPO may lower as long as the rejected ones' falls faster.
`--quick` is for tests: a few tiny steps, to see that all of it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

from datasets import Dataset, Features
from learning import QUIET, completions_of, hide_progress_bars
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from boresight import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from boresight.demo.accuracy import accuracy
from boresight.demo.easy_vqa import demonstrations, load_easy_vqa
from boresight.demo.subjects import Recipe
from boresight.demo.tiny import build_tiny
from boresight.loss.preference_options import MPO
from boresight.rewards import exact_answer_reward, get_repetition_penalty_reward
from boresight.sampling import SamplingSettings

METHODS: dict[str, dict[str, Any]] = {"DPO": {"loss_type": ["sigmoid"]}, "MPO": dict(MPO)}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long everything is trained and tested."""

    sft_steps: int = 60
    num_questions: int = 2000
    """Training questions that pairs are made of."""
    num_test: int = 1000
    num_test_pairs: int = 300
    steps: int = 100
    batch: int = 32
    learning_rate: float = 2e-4
    sft_learning_rate: float = 2e-3
    max_completion_length: int = 48
    num_rows: int | None = None
    """Training questions that SFT draws from; None for all."""


QUICK = Effort(sft_steps=2, num_questions=8, num_test=24, num_test_pairs=4, steps=10, batch=2, num_rows=160)


@dataclass(slots=True)
class Result:
    """What one model is like, and how it got there."""

    accuracy: float
    repetition: float
    """Mean share of 3-grams that were there before, over greedy completions."""
    preference_accuracy: float | None = None
    """Share of held-out pairs whose chosen answer gained more on the reference than the rejected one."""
    chosen_logps: dict[int, float] = field(default_factory=dict)
    """Step → mean log-probability of the chosen answers."""
    rejected_logps: dict[int, float] = field(default_factory=dict)


def run_seed(seed: int, folder: Path, effort: Effort) -> dict[str, Result]:
    """SFT, then each method from its checkpoint."""
    set_seed(seed)
    start = build_tiny("qwen2_5_vl", folder / "start", seed=seed, **Recipe().sizes)
    train, test = (
        load_easy_vqa("train", seed=seed, num_rows=effort.num_rows),
        load_easy_vqa("test", num_rows=effort.num_test),
    )
    sft = SFTTrainer(str(start), _sft_config(folder, seed, effort), demonstrations(train))
    sft.train()
    sft.save_model(str(folder / "sft"))
    results = {"SFT": Result(*_tested(sft, test, effort))}
    chooser = random.Random(seed)
    asked = train.select(range(effort.num_questions))
    pairs, test_pairs = _pairs(sft, asked, "train", chooser), _pairs(sft, test, "test", chooser)
    test_pairs = test_pairs.select(range(min(len(test_pairs), effort.num_test_pairs)))
    for method, options in METHODS.items():
        trainer = DPOTrainer(
            str(folder / "sft"),
            args=_config(folder / method, seed, effort, options),
            train_dataset=pairs,
            eval_dataset=test_pairs,
        )
        trainer.train()
        told_apart = trainer.evaluate()["eval_rewards/accuracies"]
        logs = [entry for entry in trainer.state.log_history if "logps/chosen" in entry]
        results[method] = Result(
            *_tested(trainer, test, effort),
            told_apart,
            {int(entry["step"]): entry["logps/chosen"] for entry in logs},
            {int(entry["step"]): entry["logps/rejected"] for entry in logs},
        )
    return results


def _pairs(trainer: SFTTrainer, questions: Dataset, split: Any, chooser: random.Random) -> Dataset:
    """Every question that the model can get wrong, the right answer against a wrong one of its own."""
    settings = SamplingSettings(num_completions=4, max_completion_length=24, seed=0)
    said = completions_of(trainer, trainer.own_sampler(), questions, settings)
    right = demonstrations(questions, split)
    rows = []
    for row, completions in zip(right.to_list(), said, strict=True):
        texts = [completion.text for completion in completions]
        marks = exact_answer_reward([[{"role": "assistant", "content": text}] for text in texts], [row["solution"]] * 4)
        wrong = [text for text, mark in zip(texts, marks, strict=True) if not mark]
        if wrong:
            rejected = [{"role": "assistant", "content": [{"type": "text", "text": chooser.choice(wrong)}]}]
            chosen = row.pop("completion")
            rows.append(row | {"chosen": chosen, "rejected": rejected})
    return Dataset.from_list(rows, features=_features(right))


def _features(right: Dataset) -> Any:
    features = dict(right.features)
    message = features.pop("completion")
    return Features(features | {"chosen": message, "rejected": message})


def _tested(trainer: Any, test: Dataset, effort: Effort) -> tuple[float, float]:
    """Accuracy and repetition of greedy answers."""
    settings = SamplingSettings(num_completions=1, max_completion_length=effort.max_completion_length, temperature=0.0)
    said = [completions[0] for completions in completions_of(trainer, trainer.own_sampler(), test, settings)]
    share = accuracy(test.to_list(), [completion.text for completion in said]).share
    repeated = get_repetition_penalty_reward(3, -1.0)(completion_ids=[completion.ids.tolist() for completion in said])
    return share, abs(sum(repeated) / len(repeated))


def _sft_config(folder: Path, seed: int, effort: Effort) -> SFTConfig:
    return SFTConfig(
        max_steps=effort.sft_steps,
        per_device_train_batch_size=64,
        learning_rate=effort.sft_learning_rate,
        warmup_steps=10,
        output_dir=str(folder / "sft_run"),
        seed=seed,
        **QUIET,
    )


def _config(folder: Path, seed: int, effort: Effort, options: dict[str, Any]) -> DPOConfig:
    return DPOConfig(
        max_steps=effort.steps,
        per_device_train_batch_size=effort.batch,
        per_device_eval_batch_size=effort.batch,
        learning_rate=effort.learning_rate,
        warmup_steps=5,
        logging_steps=10,
        output_dir=str(folder),
        seed=seed,
        **QUIET,
        **options,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="DPO and MPO on easy-VQA.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--quick", action="store_true", help="a few tiny steps of one seed: shows that all of it runs")
    args = parser.parse_args(argv)
    hide_progress_bars()
    effort, seeds = (QUICK, args.seeds[:1]) if args.quick else (Effort(), args.seeds)
    console, shown, records = Console(width=120), Table(), []
    for name in ("seed", "model", "accuracy", "held-out pairs told apart", "repetition", "log p(chosen): first → last"):
        shown.add_column(name, justify="right")
    for seed in seeds:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            results = run_seed(seed, Path(folder), effort)
        for model, result in results.items():
            steps = list(result.chosen_logps.values())
            shown.add_row(
                str(seed),
                model,
                f"{result.accuracy:.1%}",
                "" if result.preference_accuracy is None else f"{result.preference_accuracy:.1%}",
                f"{result.repetition:.3f}",
                f"{steps[0]:.2f} → {steps[-1]:.2f}" if steps else "",
            )
            records.append({"seed": seed, "model": model} | {name: getattr(result, name) for name in Result.__slots__})
        console.print(f"seed {seed}: {time.perf_counter() - began:.0f} s")
        if args.json:
            args.json.write_text(json.dumps(records, indent=1))
    console.print(shown)


if __name__ == "__main__":
    main()
