"""What `boresight doctor --plan` estimates, beside what a tiny model takes on a CPU.

    .venv/bin/python benchmarks/planner.py [--repeats N] [--json FILE]

Activations: the most bytes that torch holds at once in a forward and backward pass, above weights and gradients. Seconds: of the same
passes on one thread, beside their operations at the plan's default utilisation of the rate that products of matrices of the model's
shapes reach. Other work on the machine does not count: seconds are the process's own. `--quick` is for tests.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boresight.modules import checkpoint_activations

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}

import torch
from measure import peak_bytes
from rich.console import Console
from rich.table import Table

from boresight import SFTConfig, SFTTrainer
from boresight.data.sources import RowDataset
from boresight.demo.easy_vqa import load_easy_vqa
from boresight.demo.tiny import build_tiny
from boresight.doctor.cost import Rates, Work, update_flops
from boresight.doctor.plan import token_bytes
from boresight.doctor.size import Size, size_of

FLOAT32 = 4
SHAPES: dict[str, dict[str, int]] = {
    "128 wide, 4 layers": {"hidden_size": 128, "num_layers": 4, "vision_hidden_size": 64, "vision_depth": 2},
    "256 wide, 6 layers": {"hidden_size": 256, "num_layers": 6, "vision_hidden_size": 128, "vision_depth": 4},
    "256 wide, 12 layers": {"hidden_size": 256, "num_layers": 12, "vision_hidden_size": 128, "vision_depth": 4},
    "512 wide, 4 layers": {"hidden_size": 512, "num_layers": 4, "vision_hidden_size": 128, "vision_depth": 4},
}
QUICK = {"128 wide, 4 layers": SHAPES["128 wide, 4 layers"]}


@dataclass(frozen=True, slots=True)
class Line:
    """One model: what is estimated, and what is measured."""

    shape: str
    checkpointing: bool
    tokens: int
    said_bytes: float
    bytes: float
    said_seconds: float
    seconds: float

    @property
    def errors(self) -> tuple[float, float]:
        """Estimate over measurement, less 1, of bytes and of seconds."""
        return self.said_bytes / self.bytes - 1, self.said_seconds / self.seconds - 1


def rows(number: int, words: int) -> list[dict[str, Any]]:
    """Rows with an image, a question of many words and an answer of half as many."""
    found: Any = load_easy_vqa("train", num_rows=number)
    return [
        {
            "prompt": [{"role": "user", "content": "which " * words + "shape?"}],
            "completion": [{"role": "assistant", "content": "blue " * (words // 2)}],
            "image": row["image"],
        }
        for row in found
    ]


def measured(name: str, folder: Path, *, checkpointing: bool, number: int, words: int, repeats: int) -> Line:
    """A micro-batch of some rows under a model of this shape."""
    sizes = {"num_heads": 4, "num_kv_heads": 2, "vision_heads": 4, "vocab_size": 1024, "max_pixels": 128 * 128}
    model = build_tiny("qwen2_5_vl", folder / "model", **{**sizes, **SHAPES[name]})
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": number}
    config = SFTConfig(output_dir=str(folder / "run"), gradient_checkpointing=checkpointing, **options)
    found = rows(number, words)
    trainer: Any = SFTTrainer(str(model), config, found)
    if checkpointing:
        options: Any = config.gradient_checkpointing_kwargs
        checkpoint_activations(trainer.policy.outer, options)
    encoded = RowDataset(trainer.train_dataset)
    items = trainer.longest_items([encoded[place] for place in range(number)])
    trainer.trial_step(items)  # so that gradients are there

    def step() -> None:
        trainer.trial_step(items)

    size = size_of(str(model))
    answer = len(items[0].completions[0].ids)
    prompt = items[0].num_tokens - answer
    image = int(sum(grid.prod() for grid in items[0].prompt.vision["image_grid_thw"]) // size.patches_per_token)
    work = Work(number, 1, prompt, image, answer)
    flops = update_flops(size, work, adapter=False, checkpointing=checkpointing)
    peak = peak_bytes(step)
    return Line(
        name,
        checkpointing,
        number * work.group_tokens,
        said_bytes(size, work, checkpointing=checkpointing),
        peak,
        flops / (Rates().utilisation * matrix_rate(size, number * work.group_tokens)),
        cpu_seconds(step, repeats),
    )


def said_bytes(size: Size, work: Work, *, checkpointing: bool) -> float:
    """Activations of a micro-batch in float32, and the logits of its completions with their gradient and softmax."""
    each = token_bytes(size, image_share=work.image_share, element=FLOAT32, checkpointing=checkpointing)
    vocab = size.num_head // size.language.width
    return work.prompts * (work.group_tokens * each + 3 * FLOAT32 * vocab * work.completion_tokens)


def matrix_rate(size: Size, tokens: int) -> float:
    """Operations per second of a product of a micro-batch and a matrix of the MLP, in float32, on one thread."""
    stack = size.language
    left, right = torch.randn(tokens, stack.width), torch.randn(stack.width, stack.mlp_width)
    seconds = cpu_seconds(lambda: left @ right, 20)
    return 2 * tokens * stack.width * stack.mlp_width / seconds


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of this process's one thread, in which other work on the machine does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def lines(folder: Path, effort: argparse.Namespace) -> Iterator[Line]:
    shapes = QUICK if effort.quick else SHAPES
    number, words = (2, 40) if effort.quick else (8, 200)
    for name in shapes:
        for checkpointing in (True, False):
            place = folder / f"{name} {checkpointing}"
            yield measured(name, place, checkpointing=checkpointing, number=number, words=words, repeats=effort.repeats)


def main(arguments: Sequence[str] | None = None) -> list[Line]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="Timed passes of each model; the median counts.")
    parser.add_argument("--json", type=Path, help="A file for the figures.")
    parser.add_argument("--quick", action="store_true", help="For tests: one small model, and short rows.")
    effort = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = list(lines(Path(folder), effort))
    show(found, load)
    if effort.json:
        effort.json.write_text(json.dumps([asdict(line) for line in found], indent=1))
    return found


def show(found: Sequence[Line], load: float) -> None:
    table = Table(title=f"Estimate and measurement on a CPU, float32, one thread (load before: {load:.1f})")
    for name in ("model", "checkpointing", "tokens", "said MB", "MB", "error", "said s", "s", "error"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for line in found:
        memory, time = line.errors
        amounts = (f"{line.said_bytes / 1e6:.1f}", f"{line.bytes / 1e6:.1f}", f"{memory:+.0%}")
        times = (f"{line.said_seconds:.3f}", f"{line.seconds:.3f}", f"{time:+.0%}")
        table.add_row(line.shape, "on" if line.checkpointing else "off", f"{line.tokens:,}", *amounts, *times)
    console = Console(width=120)
    console.print(table)
    for what, errors in (
        ("bytes", [line.errors[0] for line in found]),
        ("seconds", [line.errors[1] for line in found]),
    ):
        console.print(
            f"{what}: median error {statistics.median(errors):+.0%}, from {min(errors):+.0%} to {max(errors):+.0%}"
        )


if __name__ == "__main__":
    main()
