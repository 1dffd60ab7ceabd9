"""Group-relative policy optimisation and its kin: sample, score, compare within the group, learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from boresight.data.images import decode
from boresight.data.sources import RowStream
from boresight.errors import ConfigError
from boresight.loss.policy import counted_mask, high_entropy_threshold, policy_loss, policy_total
from boresight.model.load import load_model
from boresight.model.packing import completion_mask
from boresight.model.reference import Reference
from boresight.modules import evaluating
from boresight.report.completions import CompletionStore
from boresight.report.metrics import MeanMetrics
from boresight.report.terminal import print_completions, rows_to_show
from boresight.report.trackers import log_completions
from boresight.rewards.score import Scorer
from boresight.rollout.sampler import sampling_settings
from boresight.rollout.vllm.engine import EngineError
from boresight.trainer.base import GroupTrainer, from_pretrained_options
from boresight.trainer.checks import gold_findings
from boresight.trainer.drawn import Drawn, Place, exchanged, shares
from boresight.trainer.dynamic_sampling import further_rows, note_resampling, resample
from boresight.trainer.engine import EngineSampler
from boresight.trainer.experience import Scored, from_state, padded, per_group, state_of
from boresight.trainer.grpo_config import GRPOConfig
from boresight.trainer.loading import EncodedRows, is_stream
from boresight.trainer.ranks import on_every_rank
from boresight.trainer.reference_sync import ReferenceSync
from boresight.trainer.steps import micro_batches
from boresight.trainer.verdict_probes import is_due, note_image_swap
from boresight.types import Group, Prompt, Row, TokenStats


class GRPOTrainer(GroupTrainer[Scored]):
    """Improve a policy by comparing its own completions of a prompt.

    Args:
        model: a hub id, a folder, or a loaded model.
        reward_funcs: one or several reward functions: callables `f(prompts, completions, **columns) -> list[float | None]`, sync or async,
            or names of `boresight.rewards`, or dotted paths.
        args: options; None: the defaults.
        train_dataset: rows with a `prompt`, images, and whatever columns the reward functions read.
        eval_dataset: the same, to evaluate on; or several of them by name.
        processing_class: the processor, or a bare tokenizer, or None.
        peft_config: train an adapter instead of the weights; the reference is then the model without it.
        ref_model: what to compare with where `beta` is not 0; None: the policy before training.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        reward_funcs: Any,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        ref_model: str | Path | nn.Module | None = None,
    ) -> None:
        args = GRPOConfig() if args is None else args
        self.scorer = Scorer(
            reward_funcs,
            args.reward_weights,
            workers=args.reward_workers,
            timeout_s=args.reward_timeout,
            max_failed_rate=args.max_failed_rate,
            decode_images=lambda images: [decode(image) for image in images],
            model_sizes=lambda prompt: self.encoder.model_sizes(prompt),
        )
        num_eval = args.num_generations_eval or args.num_generations
        super().__init__(
            model,
            args,
            plan=args.step_plan(),
            eval_groups=max(1, args.per_device_eval_batch_size // num_eval),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        self.sampler = EngineSampler(self) if args.use_vllm else self.own_sampler()
        self.reference = self._reference(ref_model) if args.beta != 0 else None
        if args.sync_ref_model and self.reference is not None:
            self.reference.follow(self.policy, 0.0)  # refuses now what it would refuse then
            self.add_callback(ReferenceSync(self.reference, self.policy, args))
        self.completions = CompletionStore(
            self.args.output_dir, rank=self.args.process_index, tokenizer=self.encoder.tokenizer
        )
        self.experience: list[Scored] = []
        """The groups of the latest draw, in the order its optimizer steps learn from them."""
        self._entropy_threshold: float | None = None

    def _reference(self, ref_model: str | Path | nn.Module | None) -> Reference:
        if ref_model is None:
            return Reference(self.policy)
        return Reference(self.policy, load_model(ref_model, **from_pretrained_options(self.args)).to(self.args.device))

    # ---- Data -------------------------------------------------------------------------------------------------------------------

    def encoder_options(self, args: Any) -> dict[str, Any]:
        return {**super().encoder_options(args), "max_prompt_length": args.max_prompt_length}

    def encode(self, row: Row) -> Prompt:
        return self.encoder.prompt(row)

    def _check_data(self) -> None:
        """Also have the answer rewards mark the gold answers."""
        super()._check_data()
        if self.args.dynamic_sampling and is_stream(self.train_dataset):
            raise ConfigError(
                "dynamic_sampling draws further prompts by the numbers of their rows, which a streamed data set has not: load it whole, "
                "or set dynamic_sampling=False."
            )
        on_every_rank(self._check_gold)

    def _check_gold(self) -> None:
        args, records = self.args, self.train_dataset
        # One rank is enough; the others hear of what it refuses.
        if args.gold_check != "off" and records is not None and not is_stream(records) and self.is_world_process_zero():
            is_error = args.gold_check == "error"
            for found in gold_findings(self.scorer, records, args.gold_template, seed=args.seed, is_error=is_error):
                self.log_once(found)

    # ---- A step -----------------------------------------------------------------------------------------------------------------

    def prepare(self, inputs: list[Prompt]) -> list[Scored]:
        """This optimizer step's groups; a new draw of completions where the loader brought prompts."""
        if inputs:
            try:
                self.experience = self.draw(inputs)
            except EngineError as error:
                self._keep_what_was_learned(error)
                raise
        place = self.state.global_step % self.plan.draw_period % self.plan.steps_per_draw
        items = self.experience[place * self.plan.groups_per_step : (place + 1) * self.plan.groups_per_step]
        return self._with_entropy(items) if self.args.top_entropy_quantile < 1 else items

    def _with_entropy(self, items: Sequence[Scored]) -> list[Scored]:
        """The items with their tokens' entropies, from whose quantile over the whole step and all ranks the threshold is taken."""
        groups = [item.group for item in items]
        with self.timeline.phase("logp"):
            rows = self._token_rows(groups, self.policy, "entropy")
        mask = self._mask(groups)
        counted = padded(rows, mask.shape[1])[mask]
        everywhere = torch.cat(gather_object([counted]))
        self._entropy_threshold = high_entropy_threshold(everywhere, self.args.top_entropy_quantile)
        return [replace(item, entropy=block) for item, block in zip(items, per_group(rows, groups), strict=True)]

    def draw(self, prompts: Sequence[Prompt]) -> list[Scored]:
        """Sample completions of prompts, score them, and compare each with its group."""
        # A seed of the draw's own: what is sampled depends neither on the ranks nor on what ran before.
        seed = (self.args.seed << 32) + self.state.global_step
        drawn = self._sampled(prompts, seed)
        groups, kept = drawn.groups, drawn.ranks
        if self.args.dynamic_sampling:
            drawn, kept = self._resampled(drawn, seed)
            groups = exchanged(drawn.groups, kept, self.args.process_index, self._prompt)
        if isinstance(self.sampler, EngineSampler):
            self.sampler.rest()
        advantages = drawn.advantages([place for own in kept for place in own], self.args)
        self._note(self.metrics, drawn)
        own = [advantages[place] for place in kept[self.args.process_index]]
        scored = [Scored(*pair) for pair in zip(groups, own, strict=True)]
        with self.timeline.phase("logp"):
            scored = self._with_logp(scored)
            if is_due(self.args.verdict_steps, self.state.global_step, self.plan.draw_period):
                note_image_swap(self.metrics, groups, lambda part: self.logp(part, self.policy))
        self._report(drawn, advantages)
        return scored

    def _with_logp(self, scored: Sequence[Scored]) -> list[Scored]:
        """The items with their log-probabilities before the update and under the reference; those to learn nothing from without."""
        learned = [item for item in scored if self.learns_from(item)]
        groups = [item.group for item in learned]
        # One update per draw: the policy is its own old self, and no pass is needed.
        old = self.logp(groups, self.policy) if self.plan.draw_period > 1 else [None] * len(groups)
        reference = self.logp(groups, self.reference) if self.reference is not None else [None] * len(groups)
        known = {
            id(item): replace(item, old=a, reference=b) for item, a, b in zip(learned, old, reference, strict=True)
        }
        return [known.get(id(item), item) for item in scored]

    def _sampled(self, prompts: Sequence[Prompt], seed: int) -> Drawn:
        """Completions of this rank's prompts, and what those of all ranks scored."""
        with self.timeline.phase("sample"):
            groups = self.sampler.sample(prompts, sampling_settings(self.args, seed=seed))
        with self.timeline.phase("reward"):
            table = on_every_rank(lambda: self.scorer.score(groups, trainer_state=self.state))
            return Drawn.of(groups, table)

    def _keep_what_was_learned(self, error: EngineError) -> None:
        """The engine is gone for good: a checkpoint of the last finished step, for a run that goes on later."""
        if self.state.global_step:
            self._save_checkpoint(self.model, trial=None)  # pyright: ignore[reportArgumentType]
            error.add_note(
                f"boresight: what was learned is in {self.args.output_dir}/checkpoint-{self.state.global_step}; go on with "
                "trainer.train(resume_from_checkpoint=True)."
            )

    def _resampled(self, first: Drawn, seed: int) -> tuple[Drawn, list[list[Place]]]:
        """All that dynamic sampling drew, and which groups each rank learns from."""

        rank, num_steps = self.args.process_index, self.plan.steps_per_draw

        def sample(rows: Sequence[Sequence[int]]) -> Drawn:
            with self.timeline.phase("data"):
                prompts = [self._prompt(row) for row in rows[rank]]
            return self._sampled(prompts, seed)

        own_rows = [group.prompt.row.index for group in first.groups]
        taken = {row for rows in gather_object([own_rows]) for row in rows}
        further = further_rows(len(self.train_dataset), taken, seed)
        limit = self.args.max_sampling_rounds
        found = resample(first, sample, further, self.args, num_steps=num_steps, max_rounds=limit)
        note_resampling(self.metrics, found, rank)
        if found.num_flat:
            self.log_once(f"step {self.state.global_step + 1}: {found.shortage}")
        return found.drawn, shares(found.kept, [len(own) // num_steps for own in first.ranks], num_steps)

    def _prompt(self, row: int) -> Prompt:
        """A training row's prompt, encoded here."""
        return EncodedRows(self.train_dataset, self.encode)[row]

    def logp(self, groups: Sequence[Group], model: Callable[..., TokenStats]) -> list[Tensor]:
        """Log-probabilities of every group under a model, no gradient, no dropout."""
        return per_group(self._token_rows(groups, model, "logp"), groups)

    def _token_rows(self, groups: Sequence[Group], model: Callable[..., TokenStats], wanted: str) -> list[Tensor]:
        """One row per completion of what a model says of its tokens: `logp` or `entropy`."""
        rows: list[Tensor] = []
        with torch.no_grad(), evaluating(self.policy.outer), self.compute_loss_context_manager():
            for part in micro_batches(groups, self.plan, self.args.max_tokens_per_pass):
                stats = model(part, temperature=self._temperature, ban_modalities=True, entropy=wanted == "entropy")
                rows += getattr(stats, wanted).cpu()
        return rows

    @property
    def _temperature(self) -> float:
        """What divides the logits in the loss: the sampler's temperature, 1 where that is 0."""
        return self.args.temperature or 1.0

    def learns_from(self, item: Scored) -> bool:
        return not item.is_flat or self.args.beta != 0 or self.args.entropy_coef != 0

    def total(self, items: Sequence[Scored]) -> Tensor:
        mask = self._mask([item.group for item in items])
        entropy = [row for item in items if item.entropy is not None for row in item.entropy]
        return policy_total(
            self.args,
            mask,
            self.args.max_completion_length,
            padded(entropy, mask.shape[1]) if entropy else None,
            self._entropy_threshold,
        )

    def _mask(self, groups: Sequence[Group]) -> Tensor:
        truncated = torch.tensor([completion.truncated for group in groups for completion in group.completions])
        return counted_mask(self.args, completion_mask(groups), truncated)

    def loss(self, model: nn.Module, items: Sequence[Scored], total: Tensor, metrics: MeanMetrics) -> Tensor:
        groups = [item.group for item in items]
        stats = self.policy(
            groups,
            temperature=self._temperature,
            ban_modalities=True,
            entropy=True,
            entropy_grad=self.args.entropy_coef != 0,
            wrapped=model,
        )
        device, width = stats.logp.device, stats.logp.shape[1]
        old = [row for item in items if item.old is not None for row in item.old]
        reference = [row for item in items if item.reference is not None for row in item.reference]
        sampled: list[Any] = [completion.sampler_logp for group in groups for completion in group.completions]
        result = policy_loss(
            self.args,
            stats.logp,
            padded(old, width).to(device) if old else stats.logp.detach(),
            padded(sampled, width).to(device),
            padded(reference, width).to(device) if reference else None,
            stats.entropy,
            torch.cat([item.advantage for item in items]).to(device),
            self._mask(groups).to(device),
            total,
            entropy_threshold=self._entropy_threshold,
            has_image=torch.tensor(
                [bool(group.prompt.images) for group in groups for _ in group.completions], device=device
            ),
        )
        for name, (value, count) in result.metrics.items():
            metrics.mean(name, value / count.clamp(min=1), weight=count)
        for name, value in result.minima.items():
            metrics.min(name, value)
        for name, value in result.maxima.items():
            metrics.max(name, value)
        return result.loss

    # ---- Evaluation -------------------------------------------------------------------------------------------------------------

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        try:
            return super().evaluation_loop(*args, **kwargs)
        except EngineError as error:
            if self.is_in_train:
                self._keep_what_was_learned(error)
            raise

    def evaluate_step(self, inputs: list[Prompt], metrics: MeanMetrics) -> None:
        """Reward metrics of completions sampled under a seed of their own."""
        groups = self.sampler.sample(inputs, sampling_settings(self.args, evaluating=True, seed=self.args.seed))
        table = on_every_rank(lambda: self.scorer.score(groups, trainer_state=self.state))
        self._note(metrics, Drawn.of(groups, table))
        self.completions.add(
            self.state.global_step, groups, rewards=table.by_name, reward=table.total, phase="eval", extra=table.extra
        )

    # ---- Report -----------------------------------------------------------------------------------------------------------------

    def _note(self, metrics: MeanMetrics, drawn: Drawn) -> None:
        """What all that was sampled says, and what sampling it took."""
        drawn.note(metrics, self.args)
        for name, count in self.sampler.counts.items():
            metrics.sum(f"work/sampler_{name}", count)
        self.sampler.counts.clear()

    def _report(self, drawn: Drawn, advantages: Mapping[Place, Tensor]) -> None:
        """Keep the completions in the run folder, those of groups that were thrown away too, and print them when asked to."""
        step, groups, table = self.state.global_step + 1, drawn.groups, drawn.table
        own = [advantages.get((self.args.process_index, place)) for place in range(len(groups))]
        rows = self.completions.add(
            step,
            groups,
            rewards=table.by_name,
            reward=table.total,
            advantage=torch.cat(
                [
                    torch.full((len(group),), torch.nan) if known is None else known
                    for known, group in zip(own, groups, strict=True)
                ]
            ),
            kept=[known is not None for known in own],
            logp=[completion.sampler_logp.tolist() for group in groups for completion in group.completions],  # pyright: ignore[reportOptionalMemberAccess]
            extra=table.extra,
        )
        every = max(1, int(self.state.logging_steps or 1))
        if self.args.log_completions and self.is_world_process_zero() and (step % every == 0 or step == 1):
            num = self.args.num_completions_to_print
            print_completions(rows, num_completions=num)
            folder = Path(self.args.output_dir) / "images"
            log_completions(self.callback_handler.callbacks, rows_to_show(rows, num), folder, step=step)

    # ---- Checkpoints ------------------------------------------------------------------------------------------------------------

    def state_of_method(self) -> dict[str, Any]:
        under_way = self.state.global_step % self.plan.draw_period != 0
        follows = self.args.sync_ref_model and self.reference is not None
        return {
            "experience": state_of(self.experience) if under_way else [],
            "reference": self.reference.moved_weights(self.policy) if follows else {},  # pyright: ignore[reportOptionalMemberAccess]
        }

    def restore_method(self, state: dict[str, Any]) -> None:
        wanted = {each["row"] for each in state["experience"]}
        prompts: dict[int, Prompt] = {}
        if wanted and is_stream(self.train_dataset):
            prompts = {row.index: self.encode(row) for row in RowStream(self.train_dataset) if row.index in wanted}
        elif wanted:
            prompts = {index: self._prompt(index) for index in wanted}
        self.experience = from_state(state["experience"], prompts.__getitem__)
        if self.reference is not None and state["reference"]:
            self.reference.restore(state["reference"])

    def discard_after(self, step: int) -> int:
        return super().discard_after(step) + self.completions.discard_after(step)
