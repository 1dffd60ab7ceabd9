"""boresight at work on a case, through its own trainers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from side import Side
from torch import Tensor, nn
from workload import advantages, completion_ids, no_stop_ids

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from boresight.data.images import load_image
from boresight.data.sources import RowDataset
from boresight.data.turns import continued, encoded_turn, rendered_turn, with_turn
from boresight.rollout.sampler import sampling_settings
from boresight.sampling import SamplingSettings
from boresight.trainer.rollouts.scored import Scored
from boresight.types import Completion, Group, Prompt


class OurSide(Side):
    """boresight, sampling by transformers."""

    grpo_types = (GRPOConfig, GRPOTrainer)
    dpo_types = (DPOConfig, DPOTrainer)
    sampling: ClassVar[dict[str, Any]] = {}
    """Further options of GRPO."""

    def reset(self) -> None:
        """As before a step on images never seen: no gradients, no features kept."""
        super().reset()
        self.trainer.policy.vision.clear()
        if self.trainer.reference is not None:
            self.trainer.reference.forward.vision.clear()

    def models(self) -> list[nn.Module]:
        own = self.trainer.policy.model
        reference = self.trainer.reference
        # A reference that is the policy with its adapter off is no second model.
        return [own] if reference is None or reference.forward.model is own else [own, reference.forward.model]

    def grpo_trainer(self) -> GRPOTrainer:
        trainer = self.build_grpo(**self.sampling)
        trainer.facts = replace(trainer.facts, stop_ids=no_stop_ids())
        self.make_endless(trainer)
        return trainer

    def make_endless(self, trainer: Any) -> None:
        """Completions run to their limit. A first call chooses how the model is sampled from, which a run does once."""
        trainer.sampler = trainer.rollouts.sampler = trainer.own_sampler()
        prompt = trainer.encoder.prompt(RowDataset(trainer.train_dataset)[0])
        trainer.sampler.sample([prompt], SamplingSettings(1, 1))

    def dpo_trainer(self) -> DPOTrainer:
        table = str(self.scratch / f"{self.case.name}.safetensors") if self.case.precomputed else None
        return self.build_dpo(precompute_ref_log_probs=self.case.precomputed, precomputed_ref_path=table)

    def _prompts(self) -> list[Prompt]:
        """The first prompts of the data."""
        rows = RowDataset(self.trainer.train_dataset)
        return [self.trainer.encoder.prompt(rows[index]) for index in range(self.case.num_prompts)]

    # ---- Update -----------------------------------------------------------------------------------------------------------------

    def prepare_update(self) -> None:
        """Groups of the completions that both sides are given."""
        given = completion_ids(self.case, self.folder)
        self.groups = [
            Group(prompt, tuple(self._completion(ids, prompt) for ids in rows))
            for prompt, rows in zip(self._prompts(), given, strict=True)
        ]
        self.shares = advantages(self.case).split(self.case.num_completions)

    def _completion(self, ids: Tensor, prompt: Prompt) -> Completion:
        """Of one turn; or of two, with the tool's next image between them."""
        parts = ids.chunk(2) if self.case.turn_image_tokens else [ids]
        turns = [Completion(part, torch.ones(len(part), dtype=torch.bool), "") for part in parts]
        if len(turns) == 1:
            return turns[0]
        encoder, content = self.trainer.encoder, self.look()
        text = rendered_turn(encoder.texts, [{"role": "tool", "name": "look", "content": content}], prompt.row)
        images = [load_image(part["image"], where="look") for part in content]
        return continued(with_turn(turns[0], encoded_turn(encoder, text, images, row=prompt.row.index)), turns[1])

    def update(self) -> None:
        trainer = self.trainer
        old = trainer.logp(self.groups, trainer.policy) if self.case.old else [None] * len(self.groups)
        reference = trainer.logp(self.groups, trainer.reference) if self.case.beta else [None] * len(self.groups)
        trainer.experience = [Scored(*each) for each in zip(self.groups, self.shares, old, reference, strict=True)]
        trainer.training_step(self.model, [], None)

    def logp(self) -> Tensor | None:
        if self.case.kind in ("update", "pairs"):
            with torch.no_grad():
                stats = self.trainer.policy(self.groups)
                return stats.logp * stats.mask
        return None

    # ---- Sampling ---------------------------------------------------------------------------------------------------------------

    def prepare_sample(self) -> None:
        self.prompts = self._prompts()
        self.settings = sampling_settings(self.trainer.args)

    def sample(self) -> None:
        groups = self.trainer.sampler.sample(self.prompts, self.settings)
        assert {len(completion.ids) for group in groups for completion in group.completions} == {
            self.case.completion_tokens
        }

    # ---- A whole step, and pairs ------------------------------------------------------------------------------------------------

    def batches_per_step(self) -> int:
        return 1

    def prepare_pairs(self) -> None:
        self.prepare_update()

    def pairs(self) -> None:
        self.trainer.training_step(self.model, self.groups, None)
