"""The job of `boresight demo`: a small Qwen2.5-VL learns a little from demonstrations, then improves itself by GRPO.

Real images, real questions, and test images that training never sees (`subjects`); everything else is made on the spot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import TrainerCallback, set_seed
from transformers.utils import logging

from boresight.data.sources import RowDataset
from boresight.demo.accuracy import Accuracy, accuracy
from boresight.demo.easy_vqa import blind_accuracy, question_text
from boresight.demo.subjects import SUBJECTS, Recipe
from boresight.demo.tiny import build_tiny
from boresight.rewards import answer_format_reward, exact_answer_reward
from boresight.sampling import SamplingSettings
from boresight.trainer.base import GroupTrainer
from boresight.trainer.config import SFTConfig
from boresight.trainer.grpo import GRPOTrainer
from boresight.trainer.grpo_config import GRPOConfig
from boresight.trainer.presets import preset
from boresight.trainer.sft import SFTTrainer


@dataclass(slots=True)
class Summary:
    """The results, as `summary.json` holds them."""

    data: str
    """What was learned."""
    method: str
    seed: int
    accuracy: dict[str, float] = field(default_factory=dict)
    """blind, start, sft and final."""
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % interval of start, sft and final."""
    by_kind: dict[str, dict[str, float]] = field(default_factory=dict)
    """Kind of question → blind, start, sft and final."""
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    folder: str = ""

    def add(self, stage: str, result: Accuracy) -> None:
        """Record the accuracy at one stage."""
        self.accuracy[stage] = result.share
        self.interval[stage] = result.interval
        for kind, share in result.by_kind.items():
            self.by_kind.setdefault(kind, {})[stage] = share

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time inside to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


class TimeLimit(TrainerCallback):
    """Stops training at a time limit."""

    def __init__(self, seconds: float) -> None:
        self.end = time.perf_counter() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= time.perf_counter() > self.end


def run_demo(
    output_dir: Path,
    *,
    data: str = "easy_vqa",
    seed: int = 0,
    minutes: float = 9.0,
    method: str = "grpo",
    recipe: Recipe | None = None,
) -> Summary:
    """Run the demo and write `summary.json`.

    Args:
        output_dir: the run folder: the model at each stage, completions, images, metrics.
        data: a key of `SUBJECTS`.
        seed: of the weights, the rows and the samples.
        minutes: when to stop training, whatever step it is at.
        method: grpo or gspo.
    """
    subject = SUBJECTS[data]
    recipe = recipe or subject.recipe
    begun = time.perf_counter()
    logging.disable_progress_bar()
    disable_progress_bars()
    set_seed(seed)
    summary = Summary(subject.title, method, seed, folder=str(output_dir))
    with summary.timed("prepare"):
        folder = build_tiny("qwen2_5_vl", output_dir / "start", seed=seed, **recipe.sizes)
        train, test = (
            subject.load("train", num_rows=recipe.train_rows, seed=seed),
            subject.load("test", num_rows=recipe.test_rows),
        )
        summary.counts = {"train_questions": len(train), "test_questions": len(test)}
        _keep_questions(test, output_dir / "test_questions.jsonl")
        summary.accuracy["blind"] = blind_accuracy(test)
        for kind in sorted(set(test["kind"])):
            same = test.filter(lambda row, kind=kind: row["kind"] == kind)
            summary.by_kind[kind] = {"blind": blind_accuracy(same)}
            summary.counts[f"test_questions/{kind}"] = len(same)

    sft = SFTTrainer(str(folder), _sft_config(output_dir, seed, recipe), subject.demonstrated(train, seed))
    _evaluate(sft, test, "start", summary, recipe)
    with summary.timed("sft"):
        _train(sft, "SFT", 0.45 * 60 * minutes)
        sft.save_model(str(output_dir / "sft" / "model"))
    _evaluate(sft, test, "sft", summary, recipe)

    rewards = [answer_format_reward, exact_answer_reward]
    grpo = GRPOTrainer(
        str(output_dir / "sft" / "model"),
        rewards,
        _grpo_config(output_dir, seed, recipe, method),
        subject.asked(train),
    )
    with summary.timed(method):
        evaluation = summary.seconds["evaluate"] / 2
        _train(grpo, method.upper(), 60 * minutes - (time.perf_counter() - begun) - evaluation)
        grpo.save_model(str(output_dir / method / "model"))
    _evaluate(grpo, test, "final", summary, recipe)
    summary.counts |= {"sft_steps": sft.state.global_step, f"{method}_steps": grpo.state.global_step}
    summary.seconds["total"] = time.perf_counter() - begun
    (output_dir / "summary.json").write_text(json.dumps(asdict(summary), indent=2) + "\n")
    return summary


def _train(trainer: GroupTrainer[Any], title: str, seconds: float) -> None:
    print(f"\n{title}", flush=True)
    trainer.add_callback(TimeLimit(seconds))
    trainer.train()


def _keep_questions(test: Dataset, path: Path) -> None:
    """Write the test questions and their images, so that they can be asked again without boresight."""
    for row in test["image"]:
        image = path.parent / row["path"]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(row["bytes"])
    lines = [
        {
            "question": question_text(row["prompt"]),
            "image": row["image"]["path"],
            "solution": row["solution"],
            "kind": row["kind"],
        }
        for row in test.to_list()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _sft_config(output_dir: Path, seed: int, recipe: Recipe) -> SFTConfig:
    return SFTConfig(
        output_dir=str(output_dir / "sft"),
        overwrite_output_dir=True,  # the demo may be run again
        max_steps=recipe.sft_steps,
        per_device_train_batch_size=recipe.sft_batch,
        learning_rate=recipe.sft_learning_rate,
        warmup_steps=10,
        logging_steps=25,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )


def _grpo_config(output_dir: Path, seed: int, recipe: Recipe, method: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(output_dir / method),
        overwrite_output_dir=True,
        max_steps=recipe.grpo_steps,
        num_prompts_per_step=recipe.grpo_prompts,
        per_device_train_batch_size=recipe.grpo_prompts * recipe.num_generations,
        num_generations=recipe.num_generations,
        max_completion_length=recipe.max_completion_length,
        learning_rate=recipe.grpo_learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.grpo_warmup_steps,
        logging_steps=25,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        seed=seed,
        **(preset("gspo") if method == "gspo" else {}),
    )


def _evaluate(trainer: GroupTrainer[Any], test: Dataset, stage: str, summary: Summary, recipe: Recipe) -> None:
    """Answer every test question greedily."""
    settings = SamplingSettings(num_completions=1, max_completion_length=recipe.max_completion_length, temperature=0.0)
    rows = RowDataset(test)
    texts: list[str] = []
    with summary.timed("evaluate"):
        for start in range(0, len(rows), 100):
            prompts = [trainer.encoder.prompt(rows[index]) for index in range(start, min(start + 100, len(rows)))]
            texts += [group.completions[0].text for group in trainer.own_sampler().sample(prompts, settings)]
    summary.add(stage, accuracy(test.to_list(), texts))
