"""What the benchmarks that train on easy-VQA share: quiet trainers, a checkpoint to start from, greedy answers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contest import RECIPE, Effort
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from boresight import SFTConfig, SFTTrainer
from boresight.data.sources import RowDataset
from boresight.demo.accuracy import Accuracy, accuracy
from boresight.demo.easy_vqa import demonstrations, load_easy_vqa
from boresight.demo.subjects import GUESSED_SHARE, with_guessed_colors
from boresight.demo.tiny import build_tiny
from boresight.sampling import SamplingSettings
from boresight.types import Completion

QUIET = {
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
}


def hide_progress_bars() -> None:
    """Of transformers and datasets."""
    logging.disable_progress_bar()
    disable_progress_bars()


def start_of(seed: int, folder: Path, effort: Effort) -> Path:
    """The checkpoint that every method of a seed starts from, made if it is not there."""
    start = folder / f"start_{seed}_{effort.sft_steps}"
    if not start.exists():
        set_seed(seed)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            random_weights = build_tiny("qwen2_5_vl", Path(scratch) / "random", seed=seed, **RECIPE.sizes)
            config = SFTConfig(
                output_dir=f"{scratch}/sft",
                max_steps=effort.sft_steps,
                per_device_train_batch_size=RECIPE.sft_batch,
                learning_rate=RECIPE.sft_learning_rate,
                warmup_steps=10,
                logging_steps=effort.sft_steps,
                seed=seed,
                **QUIET,
            )
            rows = load_easy_vqa("train", seed=seed, num_rows=effort.num_rows)
            sft = SFTTrainer(
                str(random_weights), config, demonstrations(with_guessed_colors(rows, GUESSED_SHARE, seed))
            )
            sft.remove_callback(PrinterCallback)
            sft.train()
            sft.save_model(f"{scratch}/model")
            shutil.move(f"{scratch}/model", start)  # only a whole checkpoint bears the name
    return start


def completions_of(
    trainer: Any, sampler: Any, questions: Dataset, settings: SamplingSettings
) -> list[Sequence[Completion]]:
    """The completions of every question by the model as it is now, 100 questions at a time."""
    rows, found = RowDataset(questions), []
    for first in range(0, len(rows), 100):
        prompts = [trainer.encoder.prompt(rows[index]) for index in range(first, min(first + 100, len(rows)))]
        found += [group.completions for group in sampler.sample(prompts, settings)]
    return found


def greedy_accuracy(trainer: Any, sampler: Any, test: Dataset) -> Accuracy:
    """Right answers of the model as it is now."""
    settings = SamplingSettings(num_completions=1, max_completion_length=RECIPE.max_completion_length, temperature=0.0)
    texts = [completions[0].text for completions in completions_of(trainer, sampler, test, settings)]
    return accuracy(test.to_list(), texts)
