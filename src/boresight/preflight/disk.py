"""Room for what a run saves: before the model is loaded by the size of its files, afterwards by its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from boresight.files import check_space, check_writable, free_bytes, in_units
from boresight.preflight.finding import Finding
from boresight.preflight.set_up import SetUp

WEIGHT_FILES = ("*.safetensors", "*.bin")
MOMENTS = 2
"""Tensors of Adam's state for each trained weight, in the weight's own size."""


def check_folder(output_dir: Path, model: Any) -> None:
    """Check, before a model is loaded, that the run folder can be written to and has room for the model, which is saved at the end.

    The size of a model on the hub or of an object is not known before it is loaded; `check_disk` follows.

    Args:
        model: a folder, a hub id, or a loaded model.

    Raises:
        DiskError: it cannot be written to, or there is no room.
    """
    check_writable(output_dir)
    folder = None if isinstance(model, nn.Module) else Path(str(model)).expanduser()
    if folder is None or not folder.is_dir() or (folder / "adapter_config.json").exists():
        return
    files = next((found for pattern in WEIGHT_FILES if (found := [*folder.glob(pattern)])), [])
    check_space(output_dir, sum(file.stat().st_size for file in files), "The trained model")


def check_disk(set_up: SetUp) -> Iterator[Finding]:
    """Room for the checkpoints that stay at once, and for the one that is written before the oldest goes."""
    args = set_up.args
    saves = str(getattr(args.save_strategy, "value", args.save_strategy)) != "no"
    model = saved_bytes(set_up.model)
    one = model + (0 if args.save_only_model else MOMENTS * trained_bytes(set_up.model))
    kept = (args.save_total_limit or 1) + 1 if saves else 0
    needed, free = kept * one + model, free_bytes(set_up.output_dir)
    if free >= needed:
        yield Finding(
            "disk", "note", "", f"{in_units(free)} free, {in_units(needed)} needed for checkpoints and model."
        )
        return
    if free < (one if saves else model):
        yield Finding(
            "disk", "error", "output_dir",
            f"the disk of {set_up.output_dir} has {in_units(free)} free; the model takes {in_units(model)}"
            + (f" and a checkpoint {in_units(one)}." if saves else "."),
            "Make room, set output_dir to another disk, or set save_only_model=True.",
        )  # fmt: skip
        return
    yield Finding(
        "disk", "warning", "save_total_limit",
        f"the disk of {set_up.output_dir} has {in_units(free)} free; {kept} checkpoints of {in_units(one)} and the model take "
        f"{in_units(needed)}.",
        "Make room, lower save_total_limit, or set save_only_model=True.",
    )  # fmt: skip


def saved_bytes(model: nn.Module) -> int:
    """Bytes of a saved model; of a model with an adapter, those of its trained weights."""
    if isinstance(model, PeftModel):
        return trained_bytes(model)
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def trained_bytes(model: nn.Module) -> int:
    """Bytes of the trained weights."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
