"""Preference optimisation: DPO, MPO and every weighted sum of preference losses, on groups of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from transformers.utils import logging

from boresight.data.sources import RowDataset
from boresight.errors import ConfigError
from boresight.loss.preference import (
    PREFERENCES,
    aot_partners,
    completion_logps,
    pair_table,
    preference_loss,
    preference_total,
    weighted_rows,
)
from boresight.loss.shift import RewardShift
from boresight.model.load import load_model
from boresight.model.packing import completion_mask
from boresight.model.reference import Reference
from boresight.modules import evaluating
from boresight.report.metrics import MeanMetrics
from boresight.trainer.base import GroupTrainer, from_pretrained_options
from boresight.trainer.dpo_config import DPOConfig
from boresight.trainer.loading import each, is_stream, values
from boresight.trainer.pairs import Pair, kept_pairs, pair_lengths, selected, stacked
from boresight.trainer.precomputed import (
    PrecomputedReference,
    processor_digest,
    saved_model_digest,
    template_digest,
    weights_digest,
)
from boresight.trainer.reference_sync import ReferenceSync
from boresight.trainer.steps import StepPlan, micro_batches
from boresight.types import Group, PerSequence, Row, TokenStats


class DPOTrainer(GroupTrainer[Pair]):
    """Learn from pairs of answers of which one is preferred.

    Rows are `prompt`, `chosen` and `rejected`, with any number of images. `DPOConfig(**MPO)` is mixed preference optimisation.

    Args:
        model: a hub id, a folder, or a loaded model.
        ref_model: what to compare with; None: the policy before training, or with its adapter off.
        args: options; None: the defaults.
        train_dataset: a `datasets` object, a list of rows, a file, a folder, or a hub id.
        eval_dataset: the same, to evaluate on; or several of them by name.
        processing_class: the processor, or a bare tokenizer, or None.
        peft_config: train an adapter instead of the weights.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        ref_model: str | Path | nn.Module | None = None,
        args: DPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = DPOConfig() if args is None else args
        size = args.per_device_train_batch_size
        self.shift = RewardShift(args.bco_shift)
        self._reward_sum = torch.zeros(2, dtype=torch.float64)
        super().__init__(
            model,
            args,
            plan=StepPlan(groups_per_step=size * args.gradient_accumulation_steps, groups_per_pass=size),
            eval_groups=args.per_device_eval_batch_size,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        if args.disable_dropout:
            switch_off_dropout(self.policy.outer)
        self.precomputed: PrecomputedReference | None = None
        if args.precompute_ref_log_probs:
            self.precomputed = self._precompute(ref_model)
        else:
            self.reference = self._reference(ref_model)
            if args.sync_ref_model:
                self.reference.follow(self.policy, 0.0)  # refuses now what it would refuse then
                self.add_callback(ReferenceSync(self.reference, self.policy, args))

    def _reference(self, ref_model: str | Path | nn.Module | None) -> Reference:
        if ref_model is None:
            return Reference(self.policy)
        return Reference(self.policy, load_model(ref_model, **from_pretrained_options(self.args)).to(self.args.device))

    # ---- Data -------------------------------------------------------------------------------------------------------------------

    def encode(self, row: Row) -> Group:
        return self.encoder.preference(row, max_length=self.args.max_length)

    def _check_data(self) -> None:
        """Also decide what becomes of overlong pairs, before the first step."""
        super()._check_data()
        self.train_dataset = each(lambda records: self._fitting(records, "training"), self.train_dataset)
        self.eval_dataset = each(lambda records: self._fitting(records, "evaluation"), self.eval_dataset)

    def _fitting(self, records: Any, name: str) -> Any:
        args = self.args
        if is_stream(records):
            if args.overlong_pairs == "drop":
                raise ConfigError(
                    "overlong_pairs='drop' needs a data set that can be counted before training: use 'truncate_completion', or filter "
                    "the stream."
                )
            return records
        found = pair_lengths(self.encoder, records, args.max_length)
        kept = kept_pairs(found, args.overlong_pairs, args.max_length)
        if found.overlong:
            done = "left out" if args.overlong_pairs == "drop" else "cut"
            self.log_once(
                f"{len(found.overlong)} of {found.num_pairs} {name} pairs are longer than max_length={args.max_length} and are {done}."
            )
        if found.num_identical:
            self.log_once(
                f"{found.num_identical} of {found.num_pairs} {name} pairs have the same answer as chosen and as rejected."
            )
        return records if len(kept) == found.num_pairs else selected(records, kept)

    # ---- Reference --------------------------------------------------------------------------------------------------------------

    def _precompute(self, ref_model: str | Path | nn.Module | None) -> PrecomputedReference:
        """Reference log-probabilities of every pair: read from disk, or computed now, each rank a share, and kept there."""
        args = self.args
        path = Path(args.precomputed_ref_path or Path(args.output_dir) / "reference_logps.safetensors")
        sets = [*values(self.train_dataset), *values(self.eval_dataset)]
        sets = [records for records in sets if records is not None]
        if any(is_stream(records) for records in sets):
            raise ConfigError("precompute_ref_log_probs=True needs data sets that have a length.")
        fingerprint = self._fingerprint(ref_model)
        table = PrecomputedReference.load(path, fingerprint) if path.exists() else PrecomputedReference(fingerprint)
        missing = table.missing(row for records in sets for row in _rows(records))
        if missing:
            self._compute(table, missing, self._momentary_reference(ref_model))
            if self.is_world_process_zero():
                table.save(path)
        return table

    def _momentary_reference(self, ref_model: str | Path | nn.Module | None) -> Callable[[Sequence[Group]], TokenStats]:
        """What computes the table, and is then let go. Before the first step the policy is its own reference: no copy is made of it."""
        is_own = ref_model is None and not isinstance(self.policy.outer, PeftModel)
        return self.policy if is_own else self._reference(ref_model)

    def _compute(
        self, table: PrecomputedReference, rows: Sequence[Row], model: Callable[[Sequence[Group]], TokenStats]
    ) -> None:
        """Add rows to the table, every rank its share of them."""
        args, own = self.args, PrecomputedReference(table.fingerprint)
        size: int = args.precompute_ref_batch_size or args.per_device_train_batch_size
        mine = rows[args.process_index :: args.world_size]
        bar = logging.tqdm(total=len(mine), desc="reference", disable=args.disable_tqdm or not args.should_log)
        with self.timeline.phase("logp"), bar:
            for start in range(0, len(mine), size):
                part = mine[start : start + size]
                own.add(part, self._logps([self.encode(row) for row in part], model, StepPlan(size, size)))
                bar.update(len(part))
        for entries in gather_object([own.entries]):
            table.update(entries)

    def _fingerprint(self, ref_model: str | Path | nn.Module | None) -> dict[str, str]:
        """Everything but the samples that reference log-probabilities depend on."""
        args = self.args
        if isinstance(ref_model, str | Path):
            # By its files, or on the hub by its commit: a model need not be loaded to be known.
            weights, adapter = saved_model_digest(str(ref_model), from_pretrained_options(args)), "none"
        else:
            weights = weights_digest(self.policy.outer if ref_model is None else ref_model)
            adapter = "off" if ref_model is None else weights_digest(ref_model, adapter=True)
        return {
            "model weights": weights,
            "adapter": adapter,
            "processor or pixel budget": processor_digest(self.encoder.processor),
            "chat template": template_digest(self.encoder.texts, args.chat_template_kwargs),
            "length policy": f"{args.max_length} {args.overlong_pairs}",
            "ld_alpha": str(args.ld_alpha),
            "dtype": f"{next(self.policy.model.parameters()).dtype} bf16={args.bf16} fp16={args.fp16}",
        }

    def _logps(
        self, groups: Sequence[Group], model: Callable[..., TokenStats], plan: StepPlan | None = None
    ) -> PerSequence:
        """[2 · groups] `completion_logps` under a model, no gradient, no dropout."""
        found = []
        with torch.no_grad(), evaluating(self.policy.outer), self.compute_loss_context_manager():
            for part in micro_batches(
                [Pair(group) for group in groups], plan or self.plan, self.args.max_tokens_per_pass
            ):
                stats = model([pair.group for pair in part])
                found.append(completion_logps(stats.logp, stats.mask, self.args.ld_alpha).float().cpu())
        return torch.cat(found)

    # ---- A step -----------------------------------------------------------------------------------------------------------------

    def prepare(self, inputs: list[Group]) -> list[Pair]:
        """The step's pairs with what the reference says of them."""
        with self.timeline.phase("logp"):
            if self.precomputed is not None:
                reference = self.precomputed([group.prompt.row for group in inputs])
            else:
                reference = self._logps(inputs, self.reference)  # pyright: ignore[reportArgumentType]
            partners = self._partners(inputs, reference)
        return [Pair(*each) for each in zip(inputs, reference.view(-1, 2), partners, strict=True)]

    def _partners(self, groups: Sequence[Group], reference: PerSequence) -> Sequence[Tensor | None]:
        """Of each pair, what coupled losses match it with among the pairs of the step on all ranks."""
        if not any(PREFERENCES[name].is_coupled for name in weighted_rows(self.args)):
            return [None] * len(groups)
        own = pair_table(self._logps(groups, self.policy), reference)
        tables = gather_object([own])
        first = sum(len(table) for table in tables[: self.args.process_index])
        return list(aot_partners(torch.cat(tables))[first : first + len(own)])

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One optimizer step's gradients, under the shift of the steps before; then this step moves the shift."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if "bco_pair" in weighted_rows(self.args):
            everywhere = torch.stack(gather_object([self._reward_sum])).sum(0)
            self.shift.update(*everywhere.tolist())
        return loss

    def begin_passes(self) -> None:
        self._reward_sum.zero_()

    def total(self, items: Sequence[Pair]) -> Tensor:
        return preference_total(completion_mask([item.group for item in items]))

    def loss(self, model: nn.Module, items: Sequence[Pair], total: Tensor, metrics: MeanMetrics) -> Tensor:
        groups = [item.group for item in items]
        stats = self.policy(groups, wrapped=model, entropy=True, collision=self.args.use_weighting)
        device = stats.logp.device
        result = preference_loss(
            self.args,
            stats.logp,
            torch.cat([item.reference for item in items]).to(device),  # pyright: ignore[reportArgumentType, reportCallIssue]
            stats.mask,
            total,
            shift=self.shift.value,
            log_collision=stats.log_collision,
            partners=stacked((item.partners for item in items), device),
        )
        self._reward_sum += result.reward_sum.detach().cpu().double()
        for name, (value, count) in result.metrics.items():
            metrics.mean(name, value / count.clamp(min=1), weight=count)
        metrics.mean("entropy", stats.entropy, weight=stats.mask)  # pyright: ignore[reportArgumentType]
        metrics.mean("mean_token_accuracy", stats.greedy, weight=stats.mask)  # pyright: ignore[reportArgumentType]
        metrics.sum("num_tokens", sum(item.num_tokens for item in items))
        metrics.mean("completions/clipped_ratio", _truncated(groups))
        return result.loss

    # ---- Checkpoints ------------------------------------------------------------------------------------------------------------

    def state_of_method(self) -> dict[str, Any]:
        follows = self.args.sync_ref_model and self.reference is not None
        return {
            "shift": self.shift.state_dict(),
            "reference": self.reference.moved_weights(self.policy) if follows else {},  # pyright: ignore[reportOptionalMemberAccess]
        }

    def restore_method(self, state: dict[str, Any]) -> None:
        self.shift.load_state_dict(state["shift"])
        if self.reference is not None and state["reference"]:
            self.reference.restore(state["reference"])


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout's probability to 0."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _truncated(groups: Sequence[Group]) -> Tensor:
    return torch.tensor([float(completion.truncated) for group in groups for completion in group.completions])


def _rows(records: Any) -> list[Row]:
    rows = RowDataset(records)
    return [rows[index] for index in range(len(rows))]
