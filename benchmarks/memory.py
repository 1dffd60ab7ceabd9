"""Bytes per parameter that training takes, measured on a tiny model beside what `boresight.trainer.memory_table` says.

    python benchmarks/memory.py

Each choice trains one step. Weights, gradients (as clipping finds them) and optimizer states are the bytes of their tensors. A tiny model
has tensors below 4,096 weights, whose 8-bit states are kept in 32 bits, so those choices take more here than they say.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from boresight import SFTConfig, SFTTrainer
from boresight.demo.tiny import build_tiny
from boresight.modules import is_quantised, num_bytes, num_weights
from boresight.trainer.memory_table import CHOICES

ROWS = [
    {"prompt": [{"role": "user", "content": f"say {word}"}], "completion": [{"role": "assistant", "content": word}]}
    for word in ("one", "two", "three", "four")
]
BF16 = {"model_init_kwargs": {"dtype": "bfloat16"}}
ROUNDED = {**BF16, "bf16_stochastic_round": True}
SMALL = {"optim": "adamw_torch_8bit"}
FULL = {"train": "language=full"}  # the rows have no images, so other parts would have no gradients
LORA = {"train": "language=lora"}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "full": FULL,
    "full, 8-bit optimizer": {**FULL, **SMALL},
    "full, bf16 with stochastic rounding": {**FULL, **ROUNDED},
    "full, bf16 with stochastic rounding, 8-bit optimizer": {**FULL, **ROUNDED, **SMALL},
    "LoRA": {**LORA, **BF16},
    "LoRA, 8-bit base": {**LORA, "model_init_kwargs": {"quantization_config": {"load_in_8bit": True}}},
    "LoRA, 4-bit base": {**LORA, "model_init_kwargs": {"quantization_config": {"load_in_4bit": True}}},
}
"""A choice of `CHOICES` → the options of its run."""


@dataclass(frozen=True, slots=True)
class Line:
    """Bytes per parameter: of the frozen base (of its linear layers, where they are quantised), and per trained weight."""

    name: str
    base: float
    trained: float

    @property
    def errors(self) -> tuple[float, float]:
        """Measured over stated, less 1."""
        said = CHOICES[self.name]
        return (self.base / said.base - 1 if said.base else 0.0), self.trained / said.trained - 1


class HeldGradients(TrainerCallback):
    """Bytes of the gradients of a step."""

    num_bytes = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.num_bytes = sum(each.grad.nbytes for each in model.parameters() if each.grad is not None)


def measured(name: str, model: Path, folder: Path) -> Line:
    """One step of a choice."""
    held = HeldGradients()
    options = {"max_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    config = SFTConfig(output_dir=str(folder), learning_rate=1e-3, **options, **SETTINGS[name])
    trainer: Any = SFTTrainer(str(model), config, ROWS, callbacks=[held])
    trainer.train()
    weights = list(trainer.model.parameters())
    trained = [each for each in weights if each.requires_grad]
    quantised = [each for each in weights if is_quantised(each)]
    base = quantised or [each for each in weights if not each.requires_grad]
    state = sum(held_bytes(each) for values in trainer.optimizer.state.values() for each in values.values())
    count = sum(each.numel() for each in trained)
    total = sum(each.nbytes for each in trained) + held.num_bytes + state
    frozen = sum(map(num_bytes, base)) / max(1, sum(map(num_weights, base)))
    return Line(name, frozen, total / count)


def held_bytes(state: Any) -> int:
    """Bytes of an optimizer's state, with the codes and scales of a quantised one (torchao)."""
    if hasattr(state, "__tensor_flatten__") and type(state).__module__.startswith("torchao."):
        return sum(getattr(state, name).nbytes for name in state.__tensor_flatten__()[0] if name != "qmap")
    return state.nbytes if getattr(state, "ndim", 0) else 0


def lines(model: Path, folder: Path) -> Iterator[Line]:
    for place, name in enumerate(CHOICES):
        yield measured(name, model, folder / str(place))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model, to try the script")
    options = parser.parse_args(words)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny("qwen2_5_vl", Path(folder) / "model", vocab_size=1024 if options.quick else 4096)
        found = list(lines(model, Path(folder)))
    print("| choice | base: said | measured | trained: said | measured | error |\n|---|---|---|---|---|---|")
    for line in found:
        said = CHOICES[line.name]
        worst = max(line.errors, key=abs)
        base = f"{said.base:.3f} | {line.base:.3f}" if said.base else "- | -"
        print(f"| {line.name} | {base} | {said.trained:.2f} | {line.trained:.2f} | {worst:+.1%} |")


if __name__ == "__main__":
    main()
