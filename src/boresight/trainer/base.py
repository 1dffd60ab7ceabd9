"""transformers' training loop, in units of groups.

One item of the loader is this rank's share of a whole optimizer step (`update`), and transformers' own accumulation stays at 1.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput

from boresight import rank_link
from boresight.data.encode import Encoder
from boresight.data.made_up import example_source
from boresight.errors import ConfigError
from boresight.model.forward import GroupForward
from boresight.model.load import (
    adapt,
    load_model,
    load_processor,
    model_facts,
    places_whole,
    promote_trainable,
)
from boresight.model.part_options import PartPlan, part_plan
from boresight.model.quantised import check_trains_adapter
from boresight.model.reference import Reference
from boresight.model.shards import gathered
from boresight.modules import evaluating, switch_off_dropout, unwrap
from boresight.option_checks import ignored_options
from boresight.preflight import SetUp, preflight, report
from boresight.preflight.disk import check_folder
from boresight.ranks import on_first_rank
from boresight.report.jsonl import StepLines
from boresight.report.metrics import MeanMetrics
from boresight.report.step_rows import show_rows
from boresight.report.timeline import Timeline
from boresight.rollout.hf import HFSampler
from boresight.trainer.config import TrainerConfig
from boresight.trainer.fingerprint import sampled_weights_digest
from boresight.trainer.identity import Identity, adapters_of, changed_options, options_of
from boresight.trainer.lifecycle import StepBoundary
from boresight.trainer.loading import each
from boresight.trainer.logs import FirstAndLastLogged, LoggingTrainer
from boresight.trainer.nested_options import named
from boresight.trainer.nonfinite import NonFiniteSteps, ZeroGradients
from boresight.trainer.options import ReferenceSyncOptions
from boresight.trainer.parts import FirstStepCheck, check_rates, left_out_note, parts_table, set_learning_rates
from boresight.trainer.pretrained import from_pretrained_options, quantising
from boresight.trainer.random_states import random_states_kept
from boresight.trainer.reference import ReferenceSync, load_reference
from boresight.trainer.resolution import check_resolution
from boresight.trainer.run_folder import CleanFolder, RunFolder, check_is_not_model
from boresight.trainer.sharding import (
    check_gathers_layers,
    divide,
    gathers_layers,
    refuse_other_engines,
    refuse_quantised_shards,
    shard,
)
from boresight.trainer.steps import StepPlan, micro_batches
from boresight.trainer.stochastic_rounding import rounds_stochastically, stochastic_optimizer, uncompiled_on_cpu
from boresight.trainer.update import Item
from boresight.trainer.verdict_probes import UpdateProbe, Verdicts

Config = TypeVar("Config", bound=TrainerConfig)


class GroupTrainer(LoggingTrainer[Item]):
    """The trainer that all methods share. A method defines how a row is encoded, the loss, and its divisor.

    Args:
        model: a hub id, a folder, or a loaded model.
        args: the method's configuration.
        train_dataset, eval_dataset: any input of `data.sources.load_rows`; `eval_dataset` may be a dict of such inputs.
        processing_class: the processor, a bare tokenizer, or None (the last two load the processor from the model's folder).
        callbacks, optimizers: as in transformers.
        peft_config: trains an adapter with this configuration instead of the weights, on the language model unless `args.train` or the
            names of its layers say otherwise.
        quantization_config: loads the base in 4 or 8 bits; the same as this entry of `args.model_init_kwargs`.
    """

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
        quantization_config: Any = None,
    ) -> None:
        args = quantising(args, quantization_config)
        if args.eval_strategy != "no" and eval_dataset is None:
            raise ConfigError(
                f"eval_strategy={getattr(args.eval_strategy, 'value', args.eval_strategy)!r} needs an eval_dataset: give one, or set "
                "eval_strategy='no'."
            )
        check_is_not_model(str(args.output_dir), model)
        refuse_other_engines(args)
        assert args.world_size >= 1  # reading it sets up the process group as the options say
        rank_link.start()
        on_first_rank(lambda: check_folder(Path(str(args.output_dir)), model))
        options = from_pretrained_options(args)
        with named(f"model_init_kwargs={options!r}") if options else contextlib.nullcontext():
            loaded = load_model(model, **options)
        source = None if isinstance(model, nn.Module) else model
        processor = load_processor(processing_class, loaded, source, **options)
        self.parts = part_plan(args)
        note = left_out_note(peft_config, self.parts, loaded)
        set_seed(args.seed)  # an adapter's first weights are random
        loaded = adapt(loaded, peft_config, self.parts)
        check_trains_adapter(loaded, is_adapted=isinstance(loaded, PeftModel))
        refuse_quantised_shards(loaded, args)
        self.check_model(loaded, args)
        if getattr(args, "disable_dropout", False):
            switch_off_dropout(loaded)
        self.checkpoint_dtypes = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
        promote_trainable(loaded, keep="dtype" in options)
        if optimizers[0] is None:
            check_resolution(loaded, args, self.parts)
        check_rates(loaded, self.parts, own_optimizer=optimizers[0] is not None)
        self.facts = model_facts(loaded, processor)
        self.encoder = Encoder(processor, facts=self.facts, **self.encoder_options(args))
        if places_whole(loaded):
            loaded.to(args.device)  # its layout is verified where it trains
        self.policy = GroupForward(
            loaded,
            self.facts,
            layout=args.layout,
            examples=example_source(self.encoder),
            max_logit_bytes=args.max_logit_mib * 2**20,
            max_cache_gib=args.vision_cache_gib,
            router_aux_loss_coef=args.router_aux_loss_coef,
        )
        self.routers = self.policy.routers
        self.plan = plan
        self.eval_plan = StepPlan(eval_groups, eval_groups)
        self._max_tokens: int | None = args.max_tokens_per_pass
        self.metrics = MeanMetrics()
        self._non_finite = NonFiniteSteps(args.nan_policy)
        rows: Any = None if train_dataset is None else self.read(train_dataset)
        self._zero_gradients = ZeroGradients()
        super().__init__(
            model=loaded,
            args=_one_pass_a_step(args, plan, eval_groups),
            train_dataset=rows,
            eval_dataset=each(self.read, eval_dataset),
            processing_class=processor,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        show_rows(self)
        self.timeline = Timeline(self._run_file("timeline.jsonl"), entered=rank_link.at)
        self.metric_lines = StepLines(self._run_file("metrics.jsonl"))
        self.step_lines = StepLines(self._run_file("steps.jsonl"))
        self.verdict_lines = StepLines(self._run_file("verdicts.jsonl"))
        self._watch_updates(self.args.verdict_steps)
        self.add_callback(FirstAndLastLogged())
        self.add_callback(CleanFolder(self.discard_after, self.log_once, self.accelerator.wait_for_everyone))
        for ignored in ignored_options(args):
            self.log_once(ignored)
        if self.parts != PartPlan() or peft_config is not None:
            self._show_parts(note)
        if train_dataset is None and eval_dataset is None:
            raise ConfigError(
                f"{type(self).__name__} has no rows: pass train_dataset, or eval_dataset to evaluate only."
            )
        self.callback_handler.callbacks.insert(0, StepBoundary(self))
        base_model = str(source or getattr(unwrap(loaded).config, "_name_or_path", "")) or None
        self.run_folder = RunFolder(
            self.args.output_dir, self.log_once, {"base_model": base_model, "set": changed_options(args)}
        )
        self._check_data()
        self.identity = self._identity(args)
        self.set_up = SetUp(
            args, loaded, self.encoder, self.facts, self.parts, peft_config, self.extent.max_prompt_tokens
        )
        if args.preflight != "off" and train_dataset is not None:
            on_first_rank(lambda: report(preflight(self.set_up), self.log_once))

    # ---- Defined by a method -------------------------------------------------------------------------------------------------------

    def check_model(self, model: nn.Module, args: Any) -> None:
        """Refuse a model that the method cannot train with these options, before rows are read.

        Args:
            model: with its adapter. Nothing is promoted, moved or divided yet.
        """

    def encoder_options(self, args: Any) -> dict[str, Any]:
        """Additional arguments of the `Encoder`."""
        return {
            "min_pixels": args.min_pixels,
            "max_pixels": args.max_pixels,
            "chat_template_kwargs": args.chat_template_kwargs,
        }

    def evaluate_step(self, inputs: list[Any], metrics: MeanMetrics) -> None:
        """Add the metrics of one batch of the evaluation set."""
        self.evaluate_items(self.prepare(inputs), metrics)

    def evaluate_items(self, items: Sequence[Item], metrics: MeanMetrics) -> None:
        """Add the loss of some items, and the metrics that come with it."""
        total = self.total(items)
        model: Any = self.model
        losses: list[torch.Tensor] = []
        for part, counts in self.aligned(micro_batches(items, self.eval_plan, self._max_tokens)):
            if counts:
                losses.append(self.loss(model, part, total, metrics))
            else:
                self.repeat(model, part)
        metrics.mean("loss", torch.stack(losses).sum(), weight=total.flatten()[0])

    def state_of_method(self) -> dict[str, Any]:
        reference = {} if self._reference_sync is None else self._reference_sync.state_dict()
        return super().state_of_method() | {"reference": reference, "num_tokens": self._num_tokens}

    def restore_method(self, state: dict[str, Any]) -> None:
        super().restore_method(state)
        self._num_tokens = state["num_tokens"]
        if self._reference_sync is not None and state["reference"]:
            self._reference_sync.load_state_dict(state["reference"])

    def parts_of_identity(self) -> dict[str, Any]:
        """What else decides the result of this method's runs, by readable names."""
        return {}

    def _identity(self, args: TrainerConfig) -> Identity:
        """The identity of this run: `identity`."""
        model = self.policy.outer
        return {
            "method": type(self).__name__,
            "model": sampled_weights_digest(model),
            "adapter": None if (adapter := getattr(model, "peft_config", None)) is None else adapters_of(adapter),
            "train_dataset": self._data_digest,
            "groups of a step": self.plan.groups_per_step * self.args.world_size,
            "steps of a rollout": self.plan.steps_per_rollout,
            **self.parts_of_identity(),
            "options": options_of(args),
        }

    # ---- Parts -------------------------------------------------------------------------------------------------------------------

    def _show_parts(self, note: str | None) -> None:
        """Print what is trained, and check the first step of a plan."""
        args: Any = self.args
        self.log_once(f"what is trained:\n{parts_table(self.policy.outer, self.parts, args.learning_rate, args.optim)}")
        if note is not None:
            self.log_once(note)
        if self.parts != PartPlan():
            self.add_callback(FirstStepCheck(self.log_once, self._warn, rounds=rounds_stochastically(args)))

    def _watch_updates(self, every: int) -> None:
        """Report verdicts every so many steps; 0: never."""
        if not every:
            return
        self.add_callback(Verdicts(every, self.verdict_lines, self.log_once))
        if not rounds_stochastically(self.args):  # by which most weights are meant to stay where they are
            self.add_callback(UpdateProbe(every, self.metrics))

    def _warn(self, step: int, text: str) -> None:
        self.verdict_lines.add(step, {"verdict": "parts", "text": text})
        self.log_once(text)

    def create_accelerator_and_postprocess(self) -> None:
        """transformers' accelerator, which divides models over CPUs too."""
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = divide(self.accelerator)
        if self.is_fsdp_enabled:
            self.by_layers = gathers_layers(self.accelerator)
            how = "one layer after another in each pass" if self.by_layers else "the whole weights for a step"
            self.log_once(
                f"FSDP2 divides weights, gradients and optimizer state over {self.accelerator.num_processes} processes; each gathers {how} "
                f"(fsdp_reshard_after_forward: {str(self.by_layers).lower()})."
            )
        if self.by_layers:
            check_gathers_layers(self.policy, self.args)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """transformers' optimizer; with `lr`, each part has groups of its own."""
        is_new = self.optimizer is None
        if is_new and self.args.bf16_stochastic_round:  # pyright: ignore[reportAttributeAccessIssue]
            self.optimizer_cls_and_kwargs = stochastic_optimizer(self.args)
        with named(f"optim={str(getattr(self.args.optim, 'value', self.args.optim))!r}"):
            optimizer = super().create_optimizer(model)
        if is_new:
            uncompiled_on_cpu(optimizer)
        if is_new and self.parts.lr:
            set_learning_rates(optimizer, self.policy.outer, self.parts.lr)
        return optimizer

    # ---- Reference --------------------------------------------------------------------------------------------------------------

    def add_reference(self, ref_model: str | Path | nn.Module | None, config: ReferenceSyncOptions) -> None:
        """Set the reference that the policy is compared with; with `sync_ref_model` it follows the policy.

        Args:
            ref_model: see `load_reference`.
        """
        self.reference = self.load_reference(ref_model)
        if self.accelerator.is_fsdp2 and self.reference.adapter is None:
            if self.by_layers:
                check_gathers_layers(self.reference.forward, self.args)
            shard(self.reference.forward.outer, self.accelerator)
        if config.sync_ref_model:
            self._reference_sync = ReferenceSync(self.reference, self.policy, config)
            self.add_callback(self._reference_sync)

    def load_reference(self, ref_model: str | Path | nn.Module | None) -> Reference:
        options = from_pretrained_options(self.args)
        return load_reference(self.policy, ref_model, device=self.args.device, options=options)

    _reference_sync: ReferenceSync | None = None

    def models_beside(self) -> list[nn.Module]:
        return [] if self.ref_model is None else [self.ref_model]

    @property
    def ref_model(self) -> nn.Module | None:
        """The reference's model, as TRL names it; None without a reference, or if it is the policy with its adapter off."""
        if self.reference is None or self.reference.adapter is not None:
            return None
        return self.reference.forward.outer

    @contextlib.contextmanager
    def unnoticed(self) -> Iterator[None]:
        reference = contextlib.nullcontext() if self.reference is None else self.reference.forward.uncounted()
        with super().unnoticed(), reference:
            yield

    @contextlib.contextmanager
    def without_gradient(self) -> Iterator[None]:
        """Disable gradients and dropout, in the precision of training, to compute log-probabilities before an update."""
        with torch.no_grad(), evaluating(self.policy.outer), self.compute_loss_context_manager():
            yield

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
        if not self.is_in_train:
            on_first_rank(lambda: self.run_folder.begin_evaluation(self.identity))
        metrics = MeanMetrics()
        self.model.eval()  # pyright: ignore[reportOptionalMemberAccess]
        num_groups = 0
        models: Any = (self.model, *self.models_beside())
        whole = gathered(*models, layers=not self.by_layers)
        with random_states_kept(), whole, torch.no_grad(), self.compute_loss_context_manager():
            for inputs in dataloader:
                self.evaluate_step(inputs, metrics)
                num_groups += len(inputs)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        logs = metrics.flush(f"{metric_key_prefix}_", self._gather)
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=logs, num_samples=num_groups)  # pyright: ignore[reportArgumentType]


def _one_pass_a_step(args: Config, plan: StepPlan, eval_groups: int) -> Config:
    """The configuration for transformers' loop, in which one loader item is one optimizer step. The user's object is not changed."""
    inner = copy.copy(args)
    inner.gradient_accumulation_steps = 1
    inner.per_device_train_batch_size = plan.groups_per_step
    inner.per_device_eval_batch_size = eval_groups
    # transformers would act on these; `TRLOptions` accepts them because they change nothing here.
    inner.remove_unused_columns = inner.use_liger_kernel = False
    return inner
