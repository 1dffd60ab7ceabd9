"""Checkpoints that a run resumes from, and the final model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer

from boresight.errors import BoresightError, ConfigError, NonFiniteError
from boresight.files import share_as_umask
from boresight.modules import unwrap

STATE_FILE = "boresight_state.pt"
"""Each rank's file in a checkpoint: the method's state other than weights, optimizer and random states."""


class CheckpointedTrainer(Trainer):
    """transformers' `Trainer` whose checkpoints hold a method's own state, and whose weights are loaded strictly."""

    args: Any
    checkpoint_dtypes: dict[str, torch.dtype]
    """Name of a weight → its dtype in the checkpoint that training started from."""

    def state_of_method(self) -> dict[str, Any]:
        """The state that a checkpoint needs for bit-exact resuming, other than weights, optimizer and random states."""
        return {}

    def restore_method(self, state: dict[str, Any]) -> None:
        """The inverse of `state_of_method`."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._refuse_non_finite_weights()
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        torch.save(self.state_of_method(), folder / f"{self.args.process_index}_{STATE_FILE}")

    def keep_what_was_learned(self, error: BoresightError) -> None:
        """Before the run ends with an error: save a checkpoint of the last finished step, and add to the error how to resume."""
        if self.state.global_step:
            self._save_checkpoint(self.model, trial=None)  # pyright: ignore[reportArgumentType]
            error.add_note(
                f"boresight: the last finished step is saved in {self.args.output_dir}/checkpoint-{self.state.global_step}; resume with "
                "trainer.train(resume_from_checkpoint=True)."
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load all weights strictly, as `from_pretrained` does.

        transformers' own loop loads state dictionaries by name. Some families, such as Qwen2.5-VL, are saved under other names than their
        modules have. No name would match, and training would continue from the current weights.
        """
        target = unwrap(self.model if model is None else model)  # pyright: ignore[reportArgumentType]
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # float32 represents every narrower value exactly, and copying converts it back.
        saved = type(target).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        target.load_state_dict(saved.state_dict(), strict=True)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)  # pyright: ignore[reportArgumentType]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            file = Path(checkpoint) / f"{self.args.process_index}_{STATE_FILE}"
            if not file.exists():
                raise ConfigError(
                    f"{checkpoint} was not saved by boresight with {self.args.world_size} ranks: {file.name} is missing."
                )
            self.restore_method(torch.load(file, weights_only=True))

    def _refuse_non_finite_weights(self) -> None:
        """Weights that are no numbers never replace good ones on disk.

        Raises:
            NonFiniteError: with the names of some of them.
        """
        named = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]  # pyright: ignore[reportOptionalMemberAccess]
        if bad := [name for name, weight in named if not weight.detach().isfinite().all()]:
            raise NonFiniteError(
                f"step {self.state.global_step}: {len(bad)} of {len(named)} trained tensors hold NaN or infinite values (the first is "
                f"{bad[0]}), so nothing is saved; earlier checkpoints stay as they are. Lower learning_rate, or set max_grad_norm."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a folder that plain transformers loads, with weights in the dtype of the original checkpoint.

        Checkpoints of transformers' loop keep the float32 weights that a resumed run needs.
        """
        if not _internal_call:
            self._refuse_non_finite_weights()
        self._exporting = not _internal_call
        super().save_model(output_dir, _internal_call)

    _exporting = False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self._exporting:
            state = self.model.state_dict() if state_dict is None else state_dict  # pyright: ignore[reportOptionalMemberAccess]
            dtypes = self.checkpoint_dtypes
            state_dict = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in state.items()}
        super()._save(output_dir, state_dict)
        share_as_umask(output_dir or self.args.output_dir)
