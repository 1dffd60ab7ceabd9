"""Preference optimisation: DPO, MPO and every weighted sum of preference losses, on groups of two."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainingArguments

from boresight.data.encode import Encoder
from boresight.data.sources import load_rows
from boresight.errors import ConfigError
from boresight.loss.preference import (
    aot_partners,
    completion_logps,
    pair_table,
    preference_loss,
    preference_total,
)
from boresight.loss.preference_options import is_coupled, reads_shift
from boresight.loss.shift import RewardShift
from boresight.model.packing import completion_mask
from boresight.model.shards import gathered
from boresight.report.metrics import MeanMetrics
from boresight.trainer.base import from_pretrained_options
from boresight.trainer.checks import Encoding
from boresight.trainer.config import DPOConfig, as_config
from boresight.trainer.eval_samples import AnsweringTrainer
from boresight.trainer.fingerprint import reference_fingerprint
from boresight.trainer.loading import StepLoader, each, is_stream, values
from boresight.trainer.pairs import Pair, kept_pairs, pair_lengths, selected, stacked
from boresight.trainer.precomputed import PrecomputedReference, precomputed_reference, rows_of
from boresight.trainer.steps import StepPlan, micro_batches
from boresight.types import Group, PerSequence, Row, TokenStats


class DPOTrainer(AnsweringTrainer[Pair]):
    """Learn from pairs of answers, of which one is preferred.

    Rows are `prompt`, `chosen` and `rejected`, with any number of images. `DPOConfig(**MPO)` is mixed preference optimisation.

    Args:
        model: a hub id, a folder, or a loaded model.
        ref_model: the reference model; None: the policy before training, or with its adapter disabled.
        args: options; None: the defaults.
        train_dataset: a `datasets` object, a list of rows, a file, a folder, or a hub id.
        eval_dataset: a data set to evaluate on, in the same forms; or a dict of several by name.
        processing_class: the processor, or a bare tokenizer, or None.
        peft_config: train an adapter instead of the weights.
        quantization_config: load the base in 4 or 8 bits, as transformers' BitsAndBytesConfig says.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        ref_model: str | Path | nn.Module | None = None,
        args: DPOConfig | TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
    ) -> None:
        args = as_config(args, DPOConfig)
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
            quantization_config=quantization_config,
        )
        self.precomputed: PrecomputedReference | None = None
        self._precomputed_from = ref_model
        if args.precompute_ref_log_probs:
            rows = rows_of([*values(self.train_dataset), *values(self.eval_dataset)])
            self.precomputed = self._precompute(ref_model, rows)
        else:
            self.add_reference(ref_model, args)

    # ---- Data -------------------------------------------------------------------------------------------------------------------

    @property
    def encoding(self) -> Encoding:
        return partial(Encoder.preference, max_length=self.args.max_length)

    @property
    def checked_encoding(self) -> Encoding:
        """Pairs of any length: `overlong_pairs` decides about the longer ones."""
        return Encoder.preference

    def _check_data(self) -> None:
        """Also apply `overlong_pairs`, before the first step."""
        super()._check_data()
        self.train_dataset = each(lambda records: self._fitting(records, "training"), self.train_dataset)
        self.eval_dataset = each(lambda records: self._fitting(records, "evaluation"), self.eval_dataset)

    def _fitting(self, records: Any, name: str) -> Any:
        args = self.args
        if is_stream(records):
            if args.overlong_pairs == "drop":
                raise ConfigError(
                    "overlong_pairs='drop' needs a data set with a length, not a stream: use 'truncate_completion', or filter "
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

    def get_eval_dataloader(self, eval_dataset: Any = None) -> StepLoader:
        """As in transformers. With a precomputed reference, the pairs of another data set are added to it first.

        Raises:
            ConfigError: these pairs have no precomputed reference, and the policy, which was their reference, has been trained.
        """
        if self.precomputed is not None and eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._fitting(load_rows(eval_dataset), "evaluation")
            rows = rows_of([eval_dataset])
            if (
                self.state.global_step
                and self.precomputed.missing(rows)
                and self._is_own_reference(self._precomputed_from)
            ):
                raise ConfigError(
                    "precompute_ref_log_probs=True: the reference of these pairs was not computed before training, and it was the policy "
                    "itself, which has changed since. Pass this data set as eval_dataset when the trainer is made, or evaluate it before "
                    "training."
                )
            self.precomputed = self._precompute(self._precomputed_from, rows)
        return super().get_eval_dataloader(eval_dataset)

    def _is_own_reference(self, ref_model: str | Path | nn.Module | None) -> bool:
        """Whether the reference is the policy's weights before its first step, so that no copy is needed then."""
        return ref_model is None and not isinstance(self.policy.outer, PeftModel)

    def _precompute(self, ref_model: str | Path | nn.Module | None, rows: Sequence[Row]) -> PrecomputedReference:
        """Reference log-probabilities of pairs: read from disk, or computed now, each rank a share, and saved to disk."""
        args = self.args
        size: int = args.precompute_ref_batch_size or args.per_device_train_batch_size

        def logps() -> Callable[[Sequence[Row]], PerSequence]:
            model = self.policy if self._is_own_reference(ref_model) else self.load_reference(ref_model)
            return lambda rows: self._logps([self.encode(row) for row in rows], model, StepPlan(size, size))

        # Ranks compute different numbers of rows.
        with self.timeline.phase("logp"), gathered(self.policy.outer):
            return precomputed_reference(
                Path(args.precomputed_ref_path or Path(args.output_dir) / "reference_logps.safetensors"),
                self._fingerprint(ref_model) if self.precomputed is None else self.precomputed.fingerprint,
                rows,
                logps,
                batch_size=size,
                shows_progress=args.should_log and not args.disable_tqdm,
            )

    def _fingerprint(self, ref_model: str | Path | nn.Module | None) -> dict[str, str]:
        args = self.args
        return reference_fingerprint(
            self.policy.outer,
            ref_model,
            self.encoder,
            template_variables=args.chat_template_kwargs,
            options=from_pretrained_options(args),
            settings={
                "length policy": f"{args.max_length} {args.overlong_pairs}",
                "ld_alpha": str(args.ld_alpha),
                "dtype": f"{next(self.policy.model.parameters()).dtype} bf16={args.bf16} fp16={args.fp16}",
            },
        )

    def _logps(
        self, groups: Sequence[Group], model: Callable[..., TokenStats], plan: StepPlan | None = None
    ) -> PerSequence:
        """[2 · groups] `completion_logps` under a model, without gradient and dropout."""
        found = []
        with self.without_gradient():
            pairs = micro_batches([Pair(group) for group in groups], plan or self.plan, self.args.max_tokens_per_pass)
            for part, counts in self.aligned(pairs):
                with contextlib.nullcontext() if counts else self.unnoticed():
                    stats = model([pair.group for pair in part])
                if counts:
                    found.append(completion_logps(stats.logp, stats.mask, self.args.ld_alpha).float().cpu())
        return torch.cat(found)

    # ---- A step -----------------------------------------------------------------------------------------------------------------

    def prepare(self, inputs: list[Group]) -> list[Pair]:
        """The step's pairs with their log-probabilities under the reference."""
        with self.timeline.phase("logp"):
            if self.precomputed is not None:
                reference = self.precomputed([group.prompt.row for group in inputs])
            else:
                reference = self._logps(inputs, self.reference)  # pyright: ignore[reportArgumentType]
            partners = self._partners(inputs, reference)
        return [Pair(*each) for each in zip(inputs, reference.view(-1, 2), partners, strict=True)]

    def _partners(self, groups: Sequence[Group], reference: PerSequence) -> Sequence[Tensor | None]:
        """The partners of each pair for coupled losses, among the step's pairs on all ranks."""
        if not is_coupled(self.args):
            return [None] * len(groups)
        own = pair_table(self._logps(groups, self.policy), reference)
        tables = gather_object([own])
        first = sum(len(table) for table in tables[: self.args.process_index])
        return list(aot_partners(torch.cat(tables))[first : first + len(own)])

    def finish_step(self) -> None:
        """Update the shift, which the next step's pairs see. A step that was skipped teaches it nothing."""
        super().finish_step()
        if reads_shift(self.args) and not self.was_skipped:
            everywhere = torch.stack(gather_object([self._reward_sum])).sum(0)
            self.shift.update(*everywhere.tolist())

    def begin_passes(self) -> None:
        super().begin_passes()
        self._reward_sum.zero_()

    def total(self, items: Sequence[Pair]) -> Tensor:
        return preference_total(completion_mask([item.group for item in items]))

    def loss(self, model: nn.Module, items: Sequence[Pair], total: Tensor, metrics: MeanMetrics) -> Tensor:
        groups = [item.group for item in items]
        stats = self.policy(groups, wrapped=model, entropy=True, collision=self.args.use_weighting)
        device = stats.logp.device
        self.watch(stats.logp, stats.mask)
        for item in items:
            self.watch(item.reference)  # pyright: ignore[reportArgumentType]
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
            metrics.add(name, value, count)
        metrics.mean("entropy", stats.entropy, weight=stats.mask)  # pyright: ignore[reportArgumentType]
        metrics.mean("mean_token_accuracy", stats.greedy, weight=stats.mask)  # pyright: ignore[reportArgumentType]
        # As TRL counts: the prompt once for each answer.
        repeated = sum(group.num_prompt_tokens * len(group) + group.num_completion_tokens for group in groups)
        metrics.sum("num_tokens", repeated)
        metrics.mean("completions/clipped_ratio", _truncated(groups))
        return result.loss

    # ---- Checkpoints ------------------------------------------------------------------------------------------------------------

    def state_of_method(self) -> dict[str, Any]:
        return super().state_of_method() | {"shift": self.shift.state_dict()}

    def restore_method(self, state: dict[str, Any]) -> None:
        super().restore_method(state)
        self.shift.load_state_dict(state["shift"])


def _truncated(groups: Sequence[Group]) -> Tensor:
    return torch.tensor([float(completion.truncated) for group in groups for completion in group.completions])
