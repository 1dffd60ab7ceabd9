"""From records to a loader of optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from boresight.data.sources import RowDataset, RowStream
from boresight.trainer.steps import StepBatches, StepPlan, StreamedBatches
from boresight.types import Row


class EncodedRows(Dataset[Any]):
    """Rows by number, encoded on access, in a loader's worker."""

    def __init__(self, records: Any, encode: Callable[[Row], Any]) -> None:
        self.rows = RowDataset(records)
        self.encode = encode

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.encode(self.rows[index])


class StepLoader(DataLoader[Any]):
    """A loader of optimizer steps. Its workers' seeds come from its own generator, so that loading does not use the global one."""

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, StepBatches):
            self.batch_sampler.set_epoch(epoch)


def step_loader(
    records: Any,
    encode: Callable[[Row], Any],
    plan: StepPlan,
    batches: StepBatches | None,
    args: Any,
    stream: Callable[[Any], RowStream] = RowStream,
) -> StepLoader:
    """A loader whose items are this rank's shares of optimizer steps.

    Args:
        batches: the rows of each step; None if records can only be iterated.
        args: transformers' data loading options.
        stream: how records that can only be iterated are read.
    """
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(args.seed)}
    if workers := args.dataloader_num_workers:
        options |= {
            "num_workers": workers,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "persistent_workers": args.dataloader_persistent_workers,
        }
    if batches is not None:
        return StepLoader(EncodedRows(records, encode), batch_sampler=batches, collate_fn=list, **options)
    if workers > 1:
        # Each additional worker would iterate over the whole stream.
        options["num_workers"] = 1
    rows = StreamedBatches(
        stream(records),
        plan,
        encode=encode,
        rank=args.process_index,
        world_size=args.world_size,
        keep_last=not args.dataloader_drop_last,
    )
    return StepLoader(rows, batch_size=None, **options)


def is_stream(dataset: Any) -> bool:
    return not hasattr(dataset, "__len__")


def values(datasets: Any) -> list[Any]:
    return list(datasets.values()) if isinstance(datasets, dict) else [datasets]


def each(function: Any, datasets: Any) -> Any:
    """Apply a function to a data set, or to each of a dictionary of data sets by name; None stays None."""
    if datasets is None:
        return None
    if isinstance(datasets, dict):
        return {name: function(dataset) for name, dataset in datasets.items()}
    return function(datasets)
