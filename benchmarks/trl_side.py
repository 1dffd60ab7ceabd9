"""TRL 1.16 at work on a case, through its own trainers."""

from __future__ import annotations

from typing import Any

import torch
from cases import Case
from side import Side
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from trl.data_utils import prepare_multimodal_messages
from trl.trainer import grpo_trainer
from workload import advantages, completion_ids, no_stop_ids

VISION = ("pixel_values", "image_grid_thw", "mm_token_type_ids", "num_images")
FLOAT32: dict[str, Any] = {"bf16": False, "model_init_kwargs": {"dtype": "float32"}}


class TRLSide(Side):
    """TRL, sampling by transformers."""

    grpo_types = (GRPOConfig, GRPOTrainer)
    dpo_types = (DPOConfig, DPOTrainer)

    def prepare(self, case: Case) -> None:
        super().prepare(case)
        self.trainer.current_gradient_accumulation_steps = self.trainer.args.gradient_accumulation_steps

    def models(self) -> list[nn.Module]:
        own = self.model.get_base_model() if self.case.lora else self.model
        return [model for model in (own, self.trainer.ref_model) if model is not None]

    def grpo_trainer(self) -> GRPOTrainer:
        generation = {"suppress_tokens": self._modality_ids(), "eos_token_id": list(no_stop_ids())}
        trainer = self.build_grpo(**FLOAT32, generation_kwargs=generation)
        trainer.eos_token_ids = list(no_stop_ids())
        return trainer

    def dpo_trainer(self) -> DPOTrainer:
        return self.build_dpo(**FLOAT32, max_length=self.case.prompt_tokens + self.case.completion_tokens)

    def _modality_ids(self) -> list[int]:
        config = self.model.config
        return [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]

    def _rows(self) -> list[dict[str, Any]]:
        """The first prompts of the data, each as often as it has completions: what TRL's loader hands its trainer."""
        rows = self.trainer.train_dataset.select(range(self.case.num_prompts))
        return [dict(row) for row in rows for _ in range(self.case.num_completions)]

    # ---- Update -----------------------------------------------------------------------------------------------------------------

    def prepare_update(self) -> None:
        """Let TRL make its own batch of the completions that both sides are given."""
        ids = completion_ids(self.case, self.folder).flatten(0, 1)
        turns = iter(part.tolist() for part in (ids.chunk(2, 1) if self.case.turn_image_tokens else [ids]))
        self.trainer._generate_single_turn = lambda *_, **__: (next(turns), None)
        if self.case.turn_image_tokens:
            self._call_after_the_first_turn()
        batch = self.trainer._generate_and_score_completions(self._rows())
        self.batch = batch | {"advantages": advantages(self.case)}
        self.trainer._prepare_inputs = lambda inputs: inputs

    def _call_after_the_first_turn(self) -> None:
        """Random tokens call nothing, so calls are not parsed but given; what follows is TRL's own loop."""
        call = {"type": "function", "function": {"name": "look", "arguments": {}}}

        def parsed(tokenizer: Any, ids: Any, *, prefix: Any, tools: Any) -> dict[str, Any]:
            calls = {"tool_calls": [call]} if len(prefix) == self.case.prompt_tokens else {}
            return {"role": "assistant", "content": "", **calls}

        grpo_trainer.parse_response = parsed

    def update(self) -> None:
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
        if self.case.kind == "update":
            with torch.no_grad():
                return self._logp(self.model) * self.batch.get("tool_mask", 1)
        if self.case.kind == "pairs":
            return self._pair_logp()
        return None

    # ---- Sampling ---------------------------------------------------------------------------------------------------------------

    def prepare_sample(self) -> None:
        prompts = [prepare_multimodal_messages(row["prompt"], images=[row["image"]]) for row in self._rows()]
        self.inputs = self.trainer._tokenize_prompts(prompts)

    def sample(self) -> None:
        ids, _ = self.trainer._generate_single_turn(*self.inputs, self.case.num_completions)
        assert {len(row) for row in ids} == {self.case.completion_tokens}

    # ---- A whole step -----------------------------------------------------------------------------------------------------------

    def batches_per_step(self) -> int:
        return self.trainer.args.gradient_accumulation_steps

    # ---- Pairs ------------------------------------------------------------------------------------------------------------------

    def prepare_pairs(self) -> None:
        """Let TRL collate a batch, then put the given completions in place of its texts."""
        rows = self.trainer.train_dataset.select(range(self.case.num_prompts))
        batch = dict(self.trainer.data_collator([dict(row) for row in rows]))
        given = completion_ids(self.case, self.folder).transpose(0, 1).flatten(0, 1)
        places = batch["completion_mask"].bool()
        assert places.sum(1).tolist() == [self.case.completion_tokens] * len(places)
        batch["input_ids"] = batch["input_ids"].masked_scatter(places, given)
        self.batch = batch

    def pairs(self) -> None:
        self.trainer.training_step(self.model, self.batch, None)

    def _pair_logp(self) -> Tensor:
        inputs = {name: value for name, value in self.batch.items() if name != "completion_mask"}
        labels = self.batch["input_ids"].masked_fill(self.batch["completion_mask"] == 0, -100)
        with torch.no_grad():
            values = self.model(**inputs, labels=labels, fused_lm_head=True).log_probs
        values = values[:, -self.case.completion_tokens :]
        # TRL puts all chosen before all rejected; here, pair by pair.
        return values.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
