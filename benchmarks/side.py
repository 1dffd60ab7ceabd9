"""What both sides have in common: a case is prepared once and then run as often as it is timed."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from cases import Case
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from workload import LEARNING_RATE, adapter, dataset, processor_of, reward, turn_images

from boresight.modules import checkpoint_activations


class Side(ABC):
    """A library at work on a case, through its own trainers.

    Args:
        folder: the model's.
        scratch: where trainers may write.
    """

    grpo_types: ClassVar[tuple[Any, Any]]
    """Configuration and trainer."""
    dpo_types: ClassVar[tuple[Any, Any]]

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch
        self.case: Any = None
        self.model: Any = None
        self.trainer: Any = None

    def prepare(self, case: Case) -> None:
        """Make everything that is not to be timed."""
        self.case = case
        self.images = iter(turn_images(case))
        self.model = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=torch.float32)
        if case.frozen:
            self.model.base_model.visual.requires_grad_(False)
        self.trainer = self.dpo_trainer() if case.kind == "pairs" else self.grpo_trainer()
        self.model = self.trainer.model
        if case.checkpointing:
            checkpoint_activations(self.model, {"use_reentrant": False})
        {
            "update": self.prepare_update,
            "sample": self.prepare_sample,
            "step": self.prepare_step,
            "pairs": self.prepare_pairs,
        }[case.kind]()

    def run(self) -> None:
        """The timed work."""
        {"update": self.update, "sample": self.sample, "step": self.step, "pairs": self.pairs}[self.case.kind]()

    def reset(self) -> None:
        """As before a step: no gradients."""
        self.model.zero_grad(set_to_none=True)

    def release(self) -> None:
        """Let go of a prepared case."""
        self.trainer = self.model = None

    @abstractmethod
    def models(self) -> list[nn.Module]:
        """Every model that a run goes through."""

    @abstractmethod
    def logp(self) -> Tensor | None:
        """[B, C] of the given completions, to compare with the other side's. None where completions are sampled."""

    @abstractmethod
    def grpo_trainer(self) -> Any:
        """The trainer of a case that samples or is given completions."""

    @abstractmethod
    def dpo_trainer(self) -> Any:
        """The trainer of a case of pairs."""

    # ---- Trainers ---------------------------------------------------------------------------------------------------------------

    def build_grpo(self, **options: Any) -> Any:
        """A GRPO trainer of the case, with a side's further options."""
        case, (config, trainer) = self.case, self.grpo_types
        args = config(
            **self._options(),
            per_device_train_batch_size=case.num_completions,
            gradient_accumulation_steps=case.num_prompts,
            num_generations=case.num_completions,
            max_completion_length=case.completion_tokens + self.turn_tokens(),
            num_iterations=2 if case.old else 1,
            **options,
        )
        return trainer(
            self.model,
            reward_funcs=reward,
            args=args,
            train_dataset=dataset(case, self.folder),
            processing_class=processor_of(case, self.folder),
            **({"tools": [self.look]} if case.turn_image_tokens else {}),
        )

    def look(self) -> list[dict[str, Any]]:
        """Look again."""
        return [{"type": "image", "image": next(self.images)}]

    def turn_tokens(self) -> int:
        """Tokens that the tool's result takes, at most."""
        return self.case.turn_image_tokens + 128 if self.case.turn_image_tokens else 0

    def build_dpo(self, **options: Any) -> Any:
        """A DPO trainer of the case, with a side's further options."""
        case, (config, trainer) = self.case, self.dpo_types
        args = config(
            **self._options(), per_device_train_batch_size=case.num_prompts, loss_type=list(case.losses), **options
        )
        return trainer(
            self.model,
            args=args,
            train_dataset=dataset(case, self.folder),
            processing_class=AutoProcessor.from_pretrained(self.folder),
            peft_config=adapter(case),
        )

    def _options(self) -> dict[str, Any]:
        return {
            "output_dir": str(self.scratch),
            "beta": self.case.beta,
            "learning_rate": LEARNING_RATE,
            "gradient_checkpointing": self.case.checkpointing,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
        }

    # ---- Kinds of work ----------------------------------------------------------------------------------------------------------

    @abstractmethod
    def prepare_update(self) -> None: ...

    @abstractmethod
    def update(self) -> None: ...

    @abstractmethod
    def prepare_sample(self) -> None: ...

    @abstractmethod
    def sample(self) -> None: ...

    @abstractmethod
    def prepare_pairs(self) -> None: ...

    @abstractmethod
    def pairs(self) -> None: ...

    def prepare_step(self) -> None:
        self.trainer.create_optimizer()
        loader = self.trainer.get_train_dataloader()
        self.batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))

    def step(self) -> None:
        for _ in range(self.batches_per_step()):
            self.trainer.training_step(self.model, next(self.batches), None)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        self.trainer.state.global_step += 1

    @abstractmethod
    def batches_per_step(self) -> int:
        """Batches of the loader that an optimizer step takes."""
