"""transformers' training loop, in units of groups.

One item of the loader is this rank's share of a whole optimizer step (`update`), and transformers' own accumulation stays at 1.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from boresight.data.encode import Encoder
from boresight.data.made_up import example_source
from boresight.data.sources import check_rows, load_rows
from boresight.errors import ConfigError
from boresight.model.forward import GroupForward
from boresight.model.load import adapt, load_model, load_processor, model_facts, places_whole, promote_trainable
from boresight.model.reference import Reference
from boresight.modules import evaluating
from boresight.report.jsonl import StepLines
from boresight.report.metrics import MeanMetrics
from boresight.report.timeline import Timeline
from boresight.rollout.hf import HFSampler
from boresight.trainer.checks import Extent, RowCheck
from boresight.trainer.config import TrainerConfig
from boresight.trainer.loading import StepLoader, each, is_stream, step_loader, values
from boresight.trainer.nonfinite import NonFiniteSteps
from boresight.trainer.options import ReferenceSyncOptions
from boresight.trainer.random_states import random_states_kept
from boresight.trainer.reference import ReferenceSync, load_reference
from boresight.trainer.resolution import check_resolution
from boresight.trainer.run_folder import CleanFolder
from boresight.trainer.steps import StepBatches, StepPlan
from boresight.trainer.update import Item, UpdatingTrainer
from boresight.trainer.verdict_probes import UpdateProbe, Verdicts
from boresight.types import Row

Config = TypeVar("Config", bound=TrainerConfig)


class GroupTrainer(UpdatingTrainer[Item]):
    """The trainer that all methods share. A method defines how a row is encoded, the loss, and its divisor.

    Args:
        model: a hub id, a folder, or a loaded model.
        args: the method's configuration.
        train_dataset, eval_dataset: any input of `data.sources.load_rows`; `eval_dataset` may be a dict of such inputs.
        processing_class: the processor, a bare tokenizer, or None (the last two load the processor from the model's folder).
        callbacks, optimizers: as in transformers.
        peft_config: trains an adapter with this configuration instead of the weights.
    """

    args: Any
    train_dataset: Any
    eval_dataset: Any
    reference: Reference | None = None
    """The model that the policy is compared with; None if the method has none."""

    def __init__(
        self,
        model: str | Path | nn.Module,
        args: TrainerConfig,
        *,
        plan: StepPlan,
        eval_groups: int,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        options = from_pretrained_options(args)
        loaded = load_model(model, **options)
        source = None if isinstance(model, nn.Module) else model
        processor = load_processor(processing_class, loaded, source, **options)
        loaded = adapt(loaded, peft_config)
        self.checkpoint_dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
        promote_trainable(loaded, keep="dtype" in options)
        if optimizers[0] is None:
            check_resolution(loaded, args)
        self.facts = model_facts(loaded, processor)
        self.encoder = Encoder(processor, facts=self.facts, **self.encoder_options(args))
        if places_whole(loaded, args):
            loaded.to(args.device)  # its layout is verified where it trains
        self.policy = GroupForward(
            loaded,
            self.facts,
            layout=args.layout,
            examples=example_source(self.encoder),
            max_logit_bytes=args.max_logit_mib * 2**20,
            max_cache_gib=args.vision_cache_gib,
        )
        self.plan = plan
        self.eval_plan = StepPlan(eval_groups, eval_groups)
        self._max_tokens: int | None = args.max_tokens_per_pass
        self.metrics = MeanMetrics()
        self._non_finite = NonFiniteSteps(args.nan_policy)
        super().__init__(
            model=loaded,
            args=_one_pass_a_step(args, plan, eval_groups),
            train_dataset=each(load_rows, train_dataset),
            eval_dataset=each(load_rows, eval_dataset),
            processing_class=processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.timeline = Timeline(self._run_file("timeline.jsonl"))
        self.metric_lines = StepLines(self._run_file("metrics.jsonl"))
        self.verdict_lines = StepLines(self._run_file("verdicts.jsonl"))
        if every := self.args.verdict_steps:
            self.add_callback(Verdicts(every, self.verdict_lines, self.log_once))
            self.add_callback(UpdateProbe(every, self.metrics))
        self.add_callback(CleanFolder(self.discard_after, self.log_once, self.accelerator.wait_for_everyone))
        self._check_data()

    # ---- Defined by a method -------------------------------------------------------------------------------------------------------

    def encoder_options(self, args: Any) -> dict[str, Any]:
        """Additional arguments of the `Encoder`."""
        return {
            "min_pixels": args.min_pixels,
            "max_pixels": args.max_pixels,
            "chat_template_kwargs": args.chat_template_kwargs,
        }

    def encode(self, row: Row) -> Any:
        """Convert a row to an item. Runs in a loader's worker."""
        raise NotImplementedError

    def evaluate_step(self, inputs: list[Any], metrics: MeanMetrics) -> None:
        """Add the metrics of one batch of the evaluation set."""
        items = self.prepare(inputs)
        total = self.total(items)
        metrics.mean("loss", self.loss(self.model, items, total, metrics), weight=total)  # pyright: ignore[reportArgumentType]

    def state_of_method(self) -> dict[str, Any]:
        return {"reference": {} if self._reference_sync is None else self._reference_sync.state_dict()}

    def restore_method(self, state: dict[str, Any]) -> None:
        if self._reference_sync is not None and state["reference"]:
            self._reference_sync.load_state_dict(state["reference"])

    # ---- Reference --------------------------------------------------------------------------------------------------------------

    def add_reference(self, ref_model: str | Path | nn.Module | None, config: ReferenceSyncOptions) -> None:
        """Set the reference that the policy is compared with; with `sync_ref_model` it follows the policy.

        Args:
            ref_model: see `load_reference`.
        """
        self.reference = self.load_reference(ref_model)
        if config.sync_ref_model:
            self._reference_sync = ReferenceSync(self.reference, self.policy, config)
            self.add_callback(self._reference_sync)

    def load_reference(self, ref_model: str | Path | nn.Module | None) -> Reference:
        options = from_pretrained_options(self.args)
        return load_reference(self.policy, ref_model, device=self.args.device, options=options)

    _reference_sync: ReferenceSync | None = None

    @contextlib.contextmanager
    def without_gradient(self) -> Iterator[None]:
        """Disable gradients and dropout, in the precision of training, to compute log-probabilities before an update."""
        with torch.no_grad(), evaluating(self.policy.outer), self.compute_loss_context_manager():
            yield

    # ---- Data -------------------------------------------------------------------------------------------------------------------

    def _check_data(self) -> None:
        """Find bad rows before the first step, if the data set can be indexed."""
        with self.timeline.phase("data"):
            datasets = [each for each in (self.train_dataset, *values(self.eval_dataset)) if each is not None]
            checks = [None if is_stream(dataset) else RowCheck(self.encoder) for dataset in datasets]
            for dataset, check in zip(datasets, checks, strict=True):
                if check is not None:
                    check_rows(dataset, check=check)
                    if check.num_tried < check.num_seen:
                        self.log_once(
                            f"{check.num_tried} of {check.num_seen} rows were fully checked before training, the others by their columns."
                        )
            self.extent = Extent.of(checks)
        if self.train_dataset is not None and not is_stream(self.train_dataset):
            dropped = self._train_batches().num_dropped
            if dropped:
                self.log_once(
                    f"{dropped} of {len(self.train_dataset)} training rows do not fill a rollout and are left out of each epoch."
                )

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
        return step_loader(self.train_dataset, self.encode, self.plan, batches, self.args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> StepLoader:
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        records: Any = self.eval_dataset if eval_dataset is None else load_rows(eval_dataset)
        if records is None:
            raise ConfigError("Evaluation needs an eval_dataset.")
        rank, world_size = self.args.process_index, self.args.world_size
        batches = None
        if not is_stream(records):
            batches = StepBatches(len(records), self.eval_plan, shuffle=False, seed=0, rank=rank, world_size=world_size)
        return step_loader(records, self.encode, self.eval_plan, batches, self.args)

    def own_sampler(self) -> HFSampler:
        """A sampler of the model being trained. It shares the cache of image features with the training passes."""
        return HFSampler(
            lambda: self.policy.outer,
            self.facts,
            self.encoder.tokenizer,
            features=self.policy.image_outputs if self.policy.takes_features else None,
            examples=self.policy.examples,
            uncounted=self.policy.uncounted,
        )

    # ---- Evaluation -------------------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self, dataloader: Any, description: str, *_: Any, metric_key_prefix: str = "eval", **__: Any
    ) -> EvalLoopOutput:
        """Metrics over the evaluation set. Every random state is restored afterwards."""
        metrics = MeanMetrics()
        self.model.eval()  # pyright: ignore[reportOptionalMemberAccess]
        num_groups = 0
        with random_states_kept(), torch.no_grad(), self.compute_loss_context_manager():
            for inputs in dataloader:
                self.evaluate_step(inputs, metrics)
                num_groups += len(inputs)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        logs = metrics.flush(f"{metric_key_prefix}_", self._gather)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=logs, num_samples=num_groups)  # pyright: ignore[reportArgumentType]

    # ---- Logs ---------------------------------------------------------------------------------------------------

    def _run_file(self, name: str) -> Path | None:
        """The path of a run file on the first rank; None on the others, which write none."""
        return Path(self.args.output_dir) / name if self.is_world_process_zero() else None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the steps since the last log, and append the log entry to RUN/metrics.jsonl."""
        if "loss" in logs:
            logs = {**logs, **self.metrics.flush(gather=self._gather)}
            if self.take_lost_loss():
                logs["loss"] = math.nan
        super().log(logs, start_time)
        logged = dict(self.state.log_history[-1])
        self.metric_lines.add(int(logged.pop("step")), logged)

    def discard_after(self, step: int) -> int:
        """Remove an earlier process's output about later steps from the run folder, and return the number of removed lines and files.

        Runs on the first rank only.
        """
        files = (self.timeline, self.metric_lines, self.verdict_lines)
        return sum(file.discard_after(step) for file in files)

    def _gather(self, own: Any) -> list[Any]:
        """The objects of all ranks, on every rank."""
        return gather_object([own])

    def note_step(self) -> None:
        """Add the work of a step to the metrics: tokens and images of policy and reference, and seconds by phase."""
        forwards = [self.policy] if self.reference is None else [self.policy, self.reference.forward]
        for forward in forwards:
            for name, count in forward.counts.items():
                self.metrics.sum(f"work/{name}", count)
            forward.counts.clear()  # so that a reference that is the policy without its adapter is not counted twice
        for name, seconds in self.timeline.end_step(self.state.global_step + 1).items():
            self.metrics.mean(name, seconds)


def _one_pass_a_step(args: Config, plan: StepPlan, eval_groups: int) -> Config:
    """The configuration for transformers' loop, in which one loader item is one optimizer step. The user's object is not changed."""
    inner = copy.copy(args)
    inner.gradient_accumulation_steps = 1
    inner.per_device_train_batch_size = plan.groups_per_step
    inner.per_device_eval_batch_size = eval_groups
    return inner


def from_pretrained_options(args: TrainerConfig) -> dict[str, Any]:
    """The arguments of `from_pretrained` that the options set."""
    given: Any = args.model_init_kwargs or {}
    return {**given, "trust_remote_code": True} if args.trust_remote_code else dict(given)
