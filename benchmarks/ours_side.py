"""boresight at work on a case, through its own trainers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from cases import Case
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from workload import LEARNING_RATE, adapter, advantages, completion_ids, dataset, no_stop_ids, reward

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from boresight.data.sources import RowDataset
from boresight.rollout.sampler import sampling_settings
from boresight.trainer.rollouts.scored import Scored
from boresight.types import Completion, Group, Prompt


class OurSide:
    """Prepares cases and runs them.

    Args:
        folder: the model's.
        scratch: where trainers may write.
    """

    name = "boresight"
    options: ClassVar[dict[str, Any]] = {}
    """Further options of GRPO."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch

    def prepare(self, case: Case) -> None:
        """Make everything that is not to be timed."""
        self.case = case
        self.model: Any = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32)
        if case.frozen:
            self.model.base_model.visual.requires_grad_(False)
        self.trainer: Any = self._dpo() if case.kind == "pairs" else self._grpo()
        self.model = self.trainer.model
        if case.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        prepare: dict[str, Callable[[], None]] = {
            "update": self._prepare_update,
            "sample": self._prepare_sample,
            "step": self._prepare_step,
            "pairs": self._prepare_update,
        }
        prepare[case.kind]()

    def reset(self) -> None:
        """As before a step on images never seen: no gradients, no features kept."""
        self.model.zero_grad(set_to_none=True)
        self.trainer.policy.vision.clear()
        if self.trainer.reference is not None:
            self.trainer.reference.forward.vision.clear()

    def run(self) -> None:
        """The timed work."""
        {"update": self._update, "sample": self._sample, "step": self._step, "pairs": self._pairs}[self.case.kind]()

    def models(self) -> list[nn.Module]:
        """Every model that a run goes through."""
        own = self.trainer.policy.model
        reference = self.trainer.reference
        # A reference that is the policy with its adapter off is no second model.
        return [own] if reference is None or reference.forward.model is own else [own, reference.forward.model]

    def _grpo(self) -> GRPOTrainer:
        case = self.case
        args = GRPOConfig(
            output_dir=str(self.scratch),
            per_device_train_batch_size=case.num_completions,
            gradient_accumulation_steps=case.num_prompts,
            num_generations=case.num_completions,
            max_completion_length=case.completion_tokens,
            num_iterations=2 if case.old else 1,
            beta=case.beta,
            learning_rate=LEARNING_RATE,
            gradient_checkpointing=case.checkpointing,
            use_cpu=True,
            report_to="none",
            **self.options,
        )
        trainer = GRPOTrainer(
            self.model,
            reward_funcs=reward,
            args=args,
            train_dataset=dataset(case, self.folder),
            processing_class=AutoProcessor.from_pretrained(self.folder),
        )
        trainer.facts = replace(trainer.facts, stop_ids=no_stop_ids())
        self.endless(trainer)
        return trainer

    def endless(self, trainer: GRPOTrainer) -> None:
        """Completions run to their limit."""
        trainer.sampler = trainer.own_sampler()

    def _dpo(self) -> DPOTrainer:
        case = self.case
        args = DPOConfig(
            output_dir=str(self.scratch),
            per_device_train_batch_size=case.num_prompts,
            beta=case.beta,
            loss_type=list(case.losses),
            precompute_ref_log_probs=case.precomputed,
            precomputed_ref_path=str(self.scratch / f"{case.name}.safetensors") if case.precomputed else None,
            learning_rate=LEARNING_RATE,
            gradient_checkpointing=case.checkpointing,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        return DPOTrainer(
            self.model,
            args=args,
            train_dataset=dataset(case, self.folder),
            processing_class=AutoProcessor.from_pretrained(self.folder),
            peft_config=adapter(case),
        )

    def _prompts(self) -> list[Prompt]:
        """The first prompts of the data."""
        rows = RowDataset(self.trainer.train_dataset)
        return [self.trainer.encoder.prompt(rows[index]) for index in range(self.case.num_prompts)]

    # ---- Update -----------------------------------------------------------------------------------------------------------------

    def _prepare_update(self) -> None:
        """Groups of the completions that both sides are given."""
        given = completion_ids(self.case, self.folder)
        mask = torch.ones(self.case.completion_tokens, dtype=torch.bool)
        self.groups = [
            Group(prompt, tuple(Completion(ids, mask, "") for ids in rows))
            for prompt, rows in zip(self._prompts(), given, strict=True)
        ]
        self.shares = advantages(self.case).split(self.case.num_completions)

    def _update(self) -> None:
        trainer = self.trainer
        old = trainer.logp(self.groups, trainer.policy) if self.case.old else [None] * len(self.groups)
        reference = trainer.logp(self.groups, trainer.reference) if self.case.beta else [None] * len(self.groups)
        trainer.experience = [Scored(*each) for each in zip(self.groups, self.shares, old, reference, strict=True)]
        trainer.training_step(self.model, [], None)

    def logp(self) -> Tensor | None:
        """[B, C] of the given completions, to compare with the other side's. None where completions are drawn."""
        if self.case.kind in ("update", "pairs"):
            with torch.no_grad():
                return self.trainer.policy(self.groups).logp
        return None

    # ---- Sampling ---------------------------------------------------------------------------------------------------------------

    def _prepare_sample(self) -> None:
        self.prompts = self._prompts()
        self.settings = sampling_settings(self.trainer.args)

    def _sample(self) -> None:
        groups = self.trainer.sampler.sample(self.prompts, self.settings)
        assert {len(completion.ids) for group in groups for completion in group.completions} == {
            self.case.completion_tokens
        }

    # ---- A whole step -----------------------------------------------------------------------------------------------------------

    def _prepare_step(self) -> None:
        self.trainer.create_optimizer()
        loader = self.trainer.get_train_dataloader()
        self.batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))

    def _step(self) -> None:
        self.trainer.training_step(self.model, next(self.batches), None)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        self.trainer.state.global_step += 1

    # ---- Pairs ------------------------------------------------------------------------------------------------------------------

    def _pairs(self) -> None:
        self.trainer.training_step(self.model, self.groups, None)
