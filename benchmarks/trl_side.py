"""TRL 1.16 at work on a case, through its own trainers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cases import Case
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from trl.data_utils import prepare_multimodal_messages
from workload import LEARNING_RATE, adapter, advantages, completion_ids, dataset, no_stop_ids, reward

VISION = ("pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images")


class TRLSide:
    """Prepares cases and runs them.

    Args:
        folder: the model's.
        scratch: where trainers may write.
    """

    name = "TRL"

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
        self.trainer.current_gradient_accumulation_steps = self.trainer.args.gradient_accumulation_steps
        if case.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        prepare: dict[str, Callable[[], None]] = {
            "update": self._prepare_update,
            "sample": self._prepare_sample,
            "step": self._prepare_step,
            "pairs": self._prepare_pairs,
        }
        prepare[case.kind]()

    def reset(self) -> None:
        """As before a step: no gradients."""
        self.model.zero_grad(set_to_none=True)

    def run(self) -> None:
        """The timed work."""
        {"update": self._update, "sample": self._sample, "step": self._step, "pairs": self._pairs}[self.case.kind]()

    def models(self) -> list[nn.Module]:
        """Every model that a run goes through."""
        own = self.model.get_base_model() if self.case.lora else self.model
        return [model for model in (own, self.trainer.ref_model) if model is not None]

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
            bf16=False,
            report_to="none",
            model_init_kwargs={"dtype": "float32"},
            generation_kwargs={"suppress_tokens": self._modality_ids(), "eos_token_id": list(no_stop_ids())},
        )
        trainer: Any = GRPOTrainer(
            self.model,
            reward_funcs=reward,
            args=args,
            train_dataset=dataset(case, self.folder),
            processing_class=AutoProcessor.from_pretrained(self.folder),
        )
        trainer.eos_token_ids = list(no_stop_ids())
        return trainer

    def _modality_ids(self) -> list[int]:
        config = self.model.config
        return [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]

    def _rows(self) -> list[dict[str, Any]]:
        """The first prompts of the data, each as often as it has completions: what TRL's loader hands its trainer."""
        rows = self.trainer.train_dataset.select(range(self.case.num_prompts))
        return [dict(row) for row in rows for _ in range(self.case.num_completions)]

    # ---- Update -----------------------------------------------------------------------------------------------------------------

    def _prepare_update(self) -> None:
        """Let TRL make its own batch of the completions that both sides are given."""
        ids = completion_ids(self.case, self.folder).flatten(0, 1).tolist()
        self.trainer._generate_single_turn = lambda *_, **__: (ids, None)
        batch = self.trainer._generate_and_score_completions(self._rows())
        self.batch = batch | {"advantages": advantages(self.case)}
        self.trainer._prepare_inputs = lambda inputs: inputs

    def _update(self) -> None:
        batch = dict(self.batch)
        with torch.no_grad():
            if self.case.old:
                batch["old_per_token_logps"] = self._logp(self.model)
            if self.case.beta:
                batch["ref_per_token_logps"] = self._logp(self.trainer.ref_model)
        self.trainer.training_step(self.model, batch, None)

    def _logp(self, model: nn.Module) -> Tensor:
        batch = self.batch
        return self.trainer._get_per_token_logps_and_entropies(
            model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
            batch["completion_ids"].shape[1],
            batch_size=self.case.num_completions,
            **{name: batch[name] for name in VISION if name in batch},
        )[0]

    def logp(self) -> Tensor | None:
        """[B, C] of the given completions, to compare with the other side's. None where completions are drawn."""
        if self.case.kind == "update":
            with torch.no_grad():
                return self._logp(self.model)
        if self.case.kind == "pairs":
            return self._pair_logp()
        return None

    # ---- Sampling ---------------------------------------------------------------------------------------------------------------

    def _prepare_sample(self) -> None:
        prompts = [prepare_multimodal_messages(row["prompt"], images=[row["image"]]) for row in self._rows()]
        self.inputs = self.trainer._tokenize_prompts(prompts)

    def _sample(self) -> None:
        ids, _ = self.trainer._generate_single_turn(*self.inputs, self.case.num_completions)
        assert {len(row) for row in ids} == {self.case.completion_tokens}

    # ---- A whole step -----------------------------------------------------------------------------------------------------------

    def _prepare_step(self) -> None:
        self.trainer.create_optimizer()
        loader = self.trainer.get_train_dataloader()
        self.batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))

    def _step(self) -> None:
        for _ in range(self.trainer.args.gradient_accumulation_steps):
            self.trainer.training_step(self.model, next(self.batches), None)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        self.trainer.state.global_step += 1

    # ---- Pairs ------------------------------------------------------------------------------------------------------------------

    def _dpo(self) -> DPOTrainer:
        case = self.case
        args = DPOConfig(
            output_dir=str(self.scratch),
            per_device_train_batch_size=case.num_prompts,
            beta=case.beta,
            loss_type=list(case.losses),
            max_length=case.prompt_tokens + case.completion_tokens,
            gradient_checkpointing=case.checkpointing,
            use_cpu=True,
            bf16=False,
            report_to="none",
            model_init_kwargs={"dtype": "float32"},
        )
        return DPOTrainer(
            self.model,
            args=args,
            train_dataset=dataset(case, self.folder),
            processing_class=AutoProcessor.from_pretrained(self.folder),
            peft_config=adapter(case),
        )

    def _prepare_pairs(self) -> None:
        """Let TRL collate a batch, then put the given completions in place of its texts."""
        rows = self.trainer.train_dataset.select(range(self.case.num_prompts))
        batch = dict(self.trainer.data_collator([dict(row) for row in rows]))
        given = completion_ids(self.case, self.folder).transpose(0, 1).flatten(0, 1)
        places = batch["completion_mask"].bool()
        assert places.sum(1).tolist() == [self.case.completion_tokens] * len(places)
        batch["input_ids"] = batch["input_ids"].masked_scatter(places, given)
        self.batch = batch

    def _pairs(self) -> None:
        self.trainer.training_step(self.model, self.batch, None)

    def _pair_logp(self) -> Tensor:
        inputs = {name: value for name, value in self.batch.items() if name != "completion_mask"}
        labels = self.batch["input_ids"].masked_fill(self.batch["completion_mask"] == 0, -100)
        with torch.no_grad():
            values = self.model(**inputs, labels=labels, fused_lm_head=True).log_probs
        values = values[:, -self.case.completion_tokens :]
        # TRL puts all chosen before all rejected; here, pair by pair.
        return values.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
