"""Group-relative policy optimisation and its variants: sample, score, compare within the group, learn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from boresight.data.images import decode
from boresight.data.sources import RowStream
from boresight.data.turns import check_template
from boresight.errors import ConfigError
from boresight.loss.policy import Entropy, LogProbs, policy_loss, policy_total
from boresight.model.shards import gathered
from boresight.ranks import on_every_rank
from boresight.report.completions import CompletionStore
from boresight.report.metric_dictionary import entry_for
from boresight.report.metrics import MeanMetrics
from boresight.report.terminal import print_completions, rows_to_show
from boresight.report.trackers import log_completions
from boresight.rewards.check import GoldCheck
from boresight.rewards.check_boxes import BoxCheck
from boresight.rewards.score import Scorer
from boresight.rollout.synced import SyncedSampler
from boresight.sampling import Sampler, TrainingHooks
from boresight.tools.environments import Environments
from boresight.trainer.checks import Encoding, reward_prompt
from boresight.trainer.config import as_config
from boresight.trainer.gold import GoldAnswers, gold_findings
from boresight.trainer.grpo_config import GRPOConfig, RLOOConfig
from boresight.trainer.loading import EncodedRows, is_stream
from boresight.trainer.reasoning import think_note, think_state
from boresight.trainer.redistribution import dealt
from boresight.trainer.rollouts.ahead import Ahead, check_lag
from boresight.trainer.rollouts.engines import WeightsMoved, check_sends, engine_sampler
from boresight.trainer.rollouts.loop import Rollouts, note_ages
from boresight.trainer.rollouts.rows import PromptRows
from boresight.trainer.rollouts.scored import Scored, from_state, padded, sampler_logp, state_of
from boresight.trainer.rollouts.turns import ToolLoop
from boresight.trainer.scored_passes import ScoredPasses
from boresight.trainer.steps import StepBatches, check_step_fits
from boresight.trainer.verdict_probes import is_due, note_image_swap
from boresight.types import Completion, Group, Prompt, Row


class GRPOTrainer(ScoredPasses):
    """Improve a policy by comparing its own completions of a prompt.

    Args:
        model: a hub id, a folder, or a loaded model.
        reward_funcs: one or several reward functions: callables `f(prompts, completions, **columns) -> list[float | None]`, sync or async,
            or names of `boresight.rewards`, or dotted paths.
        args: options; None: the defaults.
        train_dataset: rows with a `prompt`, images, and the columns that the reward functions read.
        eval_dataset: a data set to evaluate on, in the same forms; or a dict of several by name.
        processing_class: the processor, or a bare tokenizer, or None.
        peft_config: train an adapter instead of the weights; the reference is then the model without it.
        quantization_config: load the base in 4 or 8 bits, as transformers' BitsAndBytesConfig says.
        ref_model: the reference model, used if `beta` is not 0; None: the policy before training.
        tools: functions, sync or async, that the policy may call while it answers; type hints and docstrings describe them to it. A
            result is a text, an image, or a list of content parts.
        environment_factory: makes objects, one for each completion, whose public methods are tools and whose `reset` receives a row's
            columns; or several by name, of which a row's column `environment` chooses. `get_reward`, if it has one, is one more reward.
            Reward functions receive `environments`.
    """

    config_class: type[GRPOConfig] = GRPOConfig

    def __init__(
        self,
        model: str | Path | nn.Module,
        reward_funcs: Any = None,
        args: GRPOConfig | TrainingArguments | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
        ref_model: str | Path | nn.Module | None = None,
        tools: Sequence[Callable[..., Any]] | None = None,
        environment_factory: Any = None,
    ) -> None:
        args = as_config(args, self.config_class)
        self.environments = Environments(tools, environment_factory)
        given = [] if reward_funcs is None else reward_funcs
        given = list(given) if isinstance(given, list | tuple) else [given]
        own = self.environments.rewards
        weights = args.reward_weights
        self.scorer = Scorer(
            [*given, *own],
            # As in TRL, an environment's own reward has the weight 1.
            weights if weights is None or len(weights) != len(given) else [*weights, *(1.0 for _ in own)],
            workers=args.reward_workers,
            timeout_s=args.reward_timeout,
            max_failed_rate=args.max_failed_rate,
            decode_images=lambda images: [decode(image) for image in images],
            # The gold check passes prompts that are not processed.
            model_sizes=lambda prompt: self.encoder.model_sizes(
                prompt if len(prompt.ids) else self.encoder.prompt(prompt.row)
            ),
            think_opened=lambda prompt: think_state(prompt, self.encoder.tokenizer) == "opened",
            is_taken=lambda name: entry_for(name) is not None,
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
            quantization_config=quantization_config,
        )
        if args.beta != 0:
            self.add_reference(ref_model, args)
        self.sampler: Sampler = self._engine_sampler() or self.own_sampler()
        self.add_callback(WeightsMoved(self.sampler))
        self.rollouts = Rollouts(
            self.sampler,
            self.scorer,
            CompletionStore(self.args.output_dir, rank=self.args.process_index, tokenizer=self.encoder.tokenizer),
            self.args,
            self.plan,
            PromptRows(lambda: len(self.train_dataset), self._prompt),
            rank=self.args.process_index,
            timeline=self.timeline,
            metrics=self.metrics,
            log_once=self.log_once,
            ahead=self._ahead(),
            turns=self._tool_loop(),
            penalty=self._kl_penalty if args.kl_in_reward and args.beta != 0 else None,
        )
        self.experience: list[Scored] = []
        """The groups of the latest rollout, in the order in which its optimizer steps learn from them."""

    def _ahead(self) -> Ahead | None:
        if not isinstance(self.sampler, SyncedSampler) or not self.args.rollout_lag:
            return None
        rows = PromptRows(lambda: len(self.train_dataset), self._prompt)
        return Ahead(self.sampler, rows, lambda step: self._train_batches().rollout_at(step), self.args, self.log_once)

    def _tool_loop(self) -> ToolLoop | None:
        if not self.environments:
            return None
        on_every_rank(lambda: check_template(self.encoder.texts))
        loop = ToolLoop(self.sampler, self.encoder, self.environments, self.args, self.timeline)
        for name, reason in loop.workers.reasons.items():
            self.log_once(f"The tool {name} runs in the training process, where a hang in C stops all: {reason}.")
        return loop

    def _engine_sampler(self) -> Sampler | None:
        hooks = TrainingHooks(
            logp=lambda groups: self.logp(groups, self.policy),
            step=lambda: self.state.global_step,
            timeline=self.timeline,
            metrics=self.metrics,
            log_once=self.log_once,
        )
        extent = self.extent
        if self.environments and extent.max_images is not None:
            extent = replace(extent, max_images=extent.max_images + self.args.max_tool_images)
        return engine_sampler(self.args, self.policy, self.encoder, extent, hooks)

    # ---- Data -------------------------------------------------------------------------------------------------------------------

    def check_model(self, model: nn.Module, args: Any) -> None:
        check_sends(model, args)

    def encoder_options(self, args: Any) -> dict[str, Any]:
        options = {**super().encoder_options(args), "max_prompt_length": args.max_prompt_length}
        return options | ({"tools": self.environments.schemas} if self.environments else {})

    @property
    def encoding(self) -> Encoding:
        return reward_prompt

    def _check_data(self) -> None:
        """Also check that the prompts fill a step, and score the gold answers with the answer rewards."""
        super()._check_data()
        is_streamed = self.train_dataset is not None and is_stream(self.train_dataset)
        check_lag(self.args, has_tools=bool(self.environments), is_streamed=is_streamed)
        if self.train_dataset is not None and not is_stream(self.train_dataset):
            check_step_fits(self.plan, len(self.train_dataset), self.args.world_size)
        if self.args.dynamic_sampling and is_stream(self.train_dataset):
            raise ConfigError(
                "dynamic_sampling takes further prompts by row number, and a streamed data set has no row numbers: load it without "
                "streaming, or set dynamic_sampling=False."
            )
        on_every_rank(self._check_gold)

    def _check_gold(self) -> None:
        # One rank checks; an error is raised on all of them.
        if self.train_dataset is None or not self.is_world_process_zero():
            return
        gold = self._gold_answers()
        if not gold.is_usable:  # no row can be used, which training will say
            return
        if note := think_note(gold.think_state):
            self.log_once(note)
        if self.args.gold_check == "off":
            return
        if gold.is_streamed:
            self.log_once(f"gold check: the rows are streamed, so their first {len(gold.rows)} are tried.")
        checks = gold.checks(self.scorer, self.args.gold_template)
        for found in gold_findings(checks, is_error=self.args.gold_check == "error"):
            self.log_once(found)

    def gold_checks(self) -> list[GoldCheck | BoxCheck]:
        """How the answer rewards mark the gold answers of the training rows."""
        return self._gold_answers().checks(self.scorer, self.args.gold_template)

    def _gold_answers(self) -> GoldAnswers:
        return GoldAnswers(
            self.train_dataset, seed=self.args.seed, encode=self.encode, tokenizer=self.encoder.tokenizer
        )

    def _train_batches(self) -> StepBatches:
        batches = super()._train_batches()
        batches.ahead = bool(self.args.rollout_lag)
        return batches

    # ---- A step -----------------------------------------------------------------------------------------------------------------

    def prepare(self, inputs: list[Prompt]) -> list[Scored]:
        """This optimizer step's groups, after a new rollout if the loader supplied prompts."""
        if inputs:
            self.experience = self.collect(inputs)
        place = self.state.global_step % self.plan.rollout_period % self.plan.steps_per_rollout
        items = self.experience[place * self.plan.groups_per_step : (place + 1) * self.plan.groups_per_step]
        note_ages(self.metrics, items, self.state.global_step)
        return self._with_entropy(items) if self.args.top_entropy_quantile < 1 else items

    def longest_items(self, rows: Sequence[Row]) -> list[Scored]:
        """Groups of made-up completions of `max_completion_length` tokens, half of which are better than the mean."""
        ids = torch.full((self.args.max_completion_length,), self.facts.stop_ids[0])
        completion = Completion(ids, torch.ones_like(ids, dtype=torch.bool), "")
        count = self.args.num_generations
        groups = [Group(self.encode(row), (completion,) * count) for row in rows]
        return self._with_logp([Scored(group, torch.linspace(-1.0, 1.0, count)) for group in groups])

    def collect(self, prompts: Sequence[Prompt]) -> list[Scored]:
        """Sample completions of prompts, score them, compute advantages, and add the log-probabilities that the loss needs."""
        with self._sampling():
            scored, rows = self.rollouts.collect(prompts, self.state)
        with self.timeline.phase("logp"):
            scored = self._with_logp(scored)
            if is_due(self.args.verdict_steps, self.state.global_step, self.plan.rollout_period):
                groups = [item.group for item in scored]
                note_image_swap(self.metrics, groups, lambda part: self.logp(part, self.policy, spare=groups))
        self._show(rows)
        return scored

    def _sampling(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the policy can be sampled from. transformers runs the model as often as a rank's completions are long, so
        it needs the whole weights."""
        return contextlib.nullcontext() if isinstance(self.sampler, SyncedSampler) else gathered(self.policy.outer)

    def _prompt(self, row: int) -> Prompt:
        """The prompt of a training row, encoded in this process."""
        return EncodedRows(self.train_dataset, self.row_encoder)[row]

    def total(self, items: Sequence[Scored]) -> Tensor:
        mask = self._mask([item.group for item in items])
        entropy = [row for item in items if item.entropy is not None for row in item.entropy]
        return policy_total(
            self.args,
            mask,
            self.args.max_completion_length,
            Entropy(padded(entropy, mask.shape[1]), self._entropy_threshold) if entropy else None,
        )

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
        sampled = sampler_logp(groups, width)
        self.watch(stats.logp, stats.mask)
        for block in (*old, *reference):
            self.watch(block)
        result = policy_loss(
            self.args,
            LogProbs(
                policy=stats.logp,
                old=padded(old, width).to(device) if old else stats.logp.detach(),
                sampler=None if sampled is None else sampled.to(device),
                reference=padded(reference, width).to(device) if reference else None,
            ),
            torch.cat([item.advantage for item in items]).to(device),
            self._mask(groups).to(device),
            total,
            entropy=None if stats.entropy is None else Entropy(stats.entropy, self._entropy_threshold),
            has_image=torch.tensor(
                [bool(group.prompt.images or each.image_sets) for group in groups for each in group.completions],
                device=device,
            ),
        )
        if self.args.entropy_coef != 0:
            metrics.add("policy_loss", result.policy * total[0], self.total(items)[0])
            metrics.mean("entropy_coef", self.args.entropy_coef)
        for name, (value, count) in result.metrics.items():
            metrics.add(name, value, count)
        for name, value in result.minima.items():
            metrics.min(name, value)
        for name, value in result.maxima.items():
            metrics.max(name, value)
        return result.loss

    # ---- Evaluation -------------------------------------------------------------------------------------------------------------

    def evaluate_step(self, inputs: list[Prompt], metrics: MeanMetrics) -> None:
        """Add reward metrics of completions sampled for a batch, and the policy loss of these completions with its metrics."""
        with self._sampling():
            items = self.rollouts.evaluate(inputs, self.state, metrics)
        items = self._with_reference(items)
        self.evaluate_items(self._with_entropy(items) if self.args.top_entropy_quantile < 1 else items, metrics)

    # ---- Report -----------------------------------------------------------------------------------------------------------------

    def _show(self, rows: pa.Table) -> None:
        """Print a step's completions and send them to the trackers, if `log_completions` is set."""
        step, args = self.state.global_step + 1, self.args
        every = max(1, int(self.state.logging_steps or 1))
        if args.log_completions and self.is_world_process_zero() and (step % every == 0 or step == 1):
            num = args.num_completions_to_print
            print_completions(rows, num_completions=num)
            folder = Path(args.output_dir) / "images"
            log_completions(self.callback_handler.callbacks, rows_to_show(rows, num), folder, step=step)

    def parts_of_identity(self) -> dict[str, Any]:
        return {"rewards": [*self.scorer.names]}

    # ---- Checkpoints ------------------------------------------------------------------------------------------------------------

    def state_of_method(self) -> dict[str, Any]:
        under_way = self.state.global_step % self.plan.rollout_period != 0
        state = {"experience": state_of(self.experience) if under_way else []}
        ahead = None if self.rollouts.ahead is None else self.rollouts.ahead.state()
        return super().state_of_method() | state | {"ahead": ahead}

    def redistributed(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        num_steps, args = self.plan.steps_per_rollout, self.args
        held = {
            name: None
            if any(part is None for part in parts)
            else dealt(parts, num_steps, args.process_index, args.world_size)
            for name in ("experience", "ahead")
            for parts in [[state[name] for state in states]]
        }
        return super().redistributed(states) | held

    def restore_method(self, state: dict[str, Any]) -> None:
        super().restore_method(state)
        wanted = {each["row"] for each in [*state["experience"], *(state["ahead"] or [])]}
        prompts: dict[int, Prompt] = {}
        if wanted and is_stream(self.train_dataset):
            prompts = {row.index: self.encode(row) for row in RowStream(self.train_dataset) if row.index in wanted}
        elif wanted:
            prompts = {index: self._prompt(index) for index in wanted}
        self.experience = from_state(state["experience"], prompts.__getitem__, self.encoder.with_observation)
        if self.rollouts.ahead is not None:
            self.rollouts.ahead.restore(state["ahead"], prompts.__getitem__)

    def finish_step(self) -> None:
        super().finish_step()
        if self.rollouts.ahead is not None:
            self.rollouts.ahead.finish_step()

    def discard_after(self, step: int) -> int:
        return super().discard_after(step) + self.rollouts.store.discard_after(step)


class RLOOTrainer(GRPOTrainer):
    """REINFORCE with a leave-one-out baseline, with TRL's defaults. Ahmadian et al., arXiv 2402.14740.

    The arguments are those of `GRPOTrainer`.
    """

    config_class = RLOOConfig
