"""What a trainer does with rows: it reads, checks and encodes them, and loads them as the groups of its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from boresight.data.bad_rows import QUARANTINE, StreamQuarantine
from boresight.data.encode import Encoder
from boresight.data.sources import RowStream, load_rows
from boresight.errors import ConfigError
from boresight.report.timeline import Timeline
from boresight.trainer.checks import DataCheck, Encoding, Extent, RowCheck
from boresight.trainer.loading import StepLoader, is_stream, step_loader, values
from boresight.trainer.steps import StepBatches, StepPlan
from boresight.trainer.update import Item, UpdatingTrainer
from boresight.types import Row


class RowTrainer(UpdatingTrainer[Item]):
    """The trainer's side of the data. A method says how a row becomes an item (`encoding`)."""

    args: Any
    train_dataset: Any
    eval_dataset: Any
    encoder: Encoder
    plan: StepPlan
    eval_plan: StepPlan
    timeline: Timeline
    extent: Extent
    """The most tokens and images of the rows that were checked."""

    # ---- From a row to an item ---------------------------------------------------------------------------------------------------

    def read(self, source: Any) -> Any:
        """The records of a training or evaluation set, from any input of `data.sources.load_rows`."""
        return load_rows(source)

    @property
    def encoding(self) -> Encoding:
        """How an encoder converts a row to an item. Runs in loaders' workers."""
        raise NotImplementedError

    @property
    def checked_encoding(self) -> Encoding:
        """What every row must allow before training: `encoding`, where nothing else is said."""
        return self.encoding

    @property
    def row_encoder(self) -> Callable[[Row], Any]:
        """From a row to an item. It is pickled for loaders' workers, so it does not hold the trainer."""
        return partial(self.encoding, self.encoder)

    def encode(self, row: Row) -> Any:
        """Convert a row to an item."""
        return self.row_encoder(row)

    def longest_items(self, rows: Sequence[Row]) -> list[Item]:
        """The items of a step of these rows, with completions as long as they may become. For a trial before training."""
        return self.prepare([self.encode(row) for row in rows])

    # ---- Before training ---------------------------------------------------------------------------------------------------------

    def _check_data(self) -> None:
        """Find bad rows before the first step, if the data set can be indexed, and set them aside as `on_bad_row` says."""
        check = DataCheck(self.encoder, self.checked_encoding, self.args.on_bad_row, self.log_once)
        with self.timeline.phase("data"):
            self.train_dataset = check.usable(self.train_dataset, "train")
            self.eval_dataset = check.usable(self.eval_dataset, "eval")
        self.extent, self.set_aside = check.extent, tuple(check.set_aside)
        self._data_digest = check.digest_of("train")
        check.write(self._run_file(QUARANTINE))
        if self.train_dataset is not None and not is_stream(self.train_dataset):
            wanted = self.plan.groups_per_step * self.args.world_size
            if wanted > len(self.train_dataset):
                self.log_once(
                    f"an optimizer step holds the {len(self.train_dataset)} rows that there are, instead of {wanted}."
                )
            dropped = self._train_batches().num_dropped
            if dropped:
                self.log_once(
                    f"{dropped} of {len(self.train_dataset)} training rows do not fill a rollout and are left out of each epoch."
                )

    # ---- Loaders -----------------------------------------------------------------------------------------------------------------

    def _train_batches(self) -> StepBatches:
        args = self.args
        return StepBatches(
            len(self.train_dataset),
            self.plan,
            shuffle=args.shuffle_dataset,
            seed=args.seed if args.data_seed is None else args.data_seed,
            rank=args.process_index,
            world_size=args.world_size,
            keep_last=not args.dataloader_drop_last,
        )

    def get_train_dataloader(self) -> StepLoader:
        if self.train_dataset is None:
            raise ConfigError("Training needs a train_dataset.")
        batches = None if is_stream(self.train_dataset) else self._train_batches()
        return step_loader(self.train_dataset, self.row_encoder, self.plan, batches, self.args, self._stream("train"))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> StepLoader:
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        known = any(eval_dataset is own for own in values(self.eval_dataset))  # read when the trainer was built
        records: Any = self.eval_dataset if eval_dataset is None else eval_dataset if known else self.read(eval_dataset)
        if records is None:
            raise ConfigError("Evaluation needs an eval_dataset.")
        rank, world_size = self.args.process_index, self.args.world_size
        batches = None
        if not is_stream(records):
            batches = StepBatches(len(records), self.eval_plan, shuffle=False, seed=0, rank=rank, world_size=world_size)
        return step_loader(records, self.row_encoder, self.eval_plan, batches, self.args, self._stream("eval"))

    def _stream(self, name: str) -> Callable[[Any], RowStream]:
        """How a stream is read. Every rank reads all of it, and checks every row alike, so all drop the same rows."""
        check = RowCheck(self.encoder, self.checked_encoding, seconds=0)
        quarantine = StreamQuarantine(self._run_file(QUARANTINE), name)
        return partial(RowStream, check=check, on_bad_row=self.args.on_bad_row, set_aside=quarantine)

    def _run_file(self, name: str) -> Path | None:
        """The path of a run file on the first rank; None on the others, which write none."""
        return Path(self.args.output_dir) / name if self.is_world_process_zero() else None
