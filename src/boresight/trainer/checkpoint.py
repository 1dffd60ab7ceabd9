"""Checkpoints that a run resumes from, and the final model folder: each is whole, or not there.

A checkpoint is written into a folder of another name, flushed to the disk, listed in its manifest, renamed and checked. Only then are older
ones removed. So a process that is killed, or a disk that is full, at any moment leaves the last whole checkpoint as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from torch import Tensor, nn
from transformers import Trainer, set_seed
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_callback import ExportableState

from boresight.errors import BoresightError, DiskError, NonFiniteError
from boresight.files import (
    cause_of_failed_write,
    check_space,
    flush,
    flush_folder,
    free_bytes,
    in_units,
    remove_folder,
    share_as_umask,
)
from boresight.model.shards import class_of, full_state, is_sharded, load_full_state
from boresight.modules import local, unwrap
from boresight.ranks import on_every_rank
from boresight.trainer.identity import Identity
from boresight.trainer.manifest import MANIFEST, read_manifest, write_manifest
from boresight.trainer.nested_options import named
from boresight.trainer.run_folder import PREFIX, SAVING, RunFolder, publish_model
from boresight.trainer.sharding import (
    SHARDS,
    load_optimizer,
    load_optimizer_shards,
    load_shards,
    save_optimizer,
    save_shards,
    saves_shards,
)

STATE_FILE = "boresight_state.pt"
"""Each rank's file in a checkpoint: the method's state other than weights, optimizer and random states."""


class CheckpointedTrainer(Trainer):
    """transformers' `Trainer` whose checkpoints are whole or not there, hold a method's own state, and are loaded strictly."""

    args: Any
    checkpoint_dtypes: dict[str, torch.dtype]
    """Name of a weight → its dtype in the checkpoint that training started from."""
    identity: Identity
    """This run's."""
    run_folder: RunFolder

    def state_of_method(self) -> dict[str, Any]:
        """The state that a checkpoint needs for bit-exact resuming, other than weights, optimizer and random states."""
        return {}

    def restore_method(self, state: dict[str, Any]) -> None:
        """The inverse of `state_of_method`."""

    def redistributed(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """This rank's state, from those of another number of ranks. What is the same on all ranks is taken from the first."""
        return dict(states[0])

    def init_hf_repo(self, token: str | None = None) -> None:
        """As in transformers; what the hub refuses is an error of the option."""
        with named("push_to_hub=True"):
            super().init_hf_repo(token)

    # ---- Saving -----------------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint of the last finished step.

        Raises:
            NonFiniteError: a trained weight is NaN or infinite.
            DiskError: it could not be written. Earlier checkpoints are as they were.
        """
        self._refuse_non_finite_weights()
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        folder = Path(self._get_output_dir(trial))
        target = folder / f"{PREFIX}{self.state.global_step}"
        aside = folder / f"{SAVING}{target.name}"
        try:
            self._writing(target, lambda: self._make_room(aside))
            self._writing(target, lambda: self._write_checkpoint(aside, target))
            self._writing(target, lambda: self._publish_checkpoint(aside, target))
        except BoresightError:
            if self.args.should_save:
                remove_folder(aside)
            raise
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _writing(self, target: Path, work: Callable[[], None]) -> None:
        """Do a part of the writing on every rank; whatever fails is an error of all of them that names the file and the cause."""

        def named() -> None:
            try:
                work()
            except BoresightError as error:
                raise self._with_last_whole(error) from error.__cause__
            except Exception as error:
                free = in_units(free_bytes(target.parent))
                cause = cause_of_failed_write(error)
                message = f"{target} was not saved: {cause}. {free} are free there. Make room, or set output_dir to another disk."
                raise self._with_last_whole(DiskError(message)) from error

        on_every_rank(named)

    def _with_last_whole(self, error: BoresightError) -> BoresightError:
        found = [folder for folder in self.run_folder.checkpoints() if (folder / MANIFEST).exists()]
        kept = f"The last whole checkpoint is {found[-1]}." if found else "There is no checkpoint before it."
        return error if isinstance(error, NonFiniteError) else type(error)(f"{error} {kept}")

    def _make_room(self, aside: Path) -> None:
        if self.args.should_save:
            remove_folder(aside)
            aside.parent.mkdir(parents=True, exist_ok=True)
            check_space(aside.parent, self.checkpoint_bytes(), f"The checkpoint of step {self.state.global_step}")
            aside.mkdir()

    def checkpoint_bytes(self) -> int:
        """Bytes of the next checkpoint: those of the last, or at least those of its weights and its optimizer's state."""
        if self._last_size is not None:
            return self._last_size
        is_adapter = isinstance(self.model, PeftModel)
        weights = [
            weight
            for weight in self.model.parameters()  # pyright: ignore[reportOptionalMemberAccess]
            if weight.requires_grad or not is_adapter
        ]
        moments = 0
        if self.optimizer is not None and not self.args.save_only_model:
            states: Any = self.optimizer.state.values()  # pyright: ignore[reportAttributeAccessIssue]
            moments = sum(_bytes(value) for state in states for value in state.values() if isinstance(value, Tensor))
        return sum(map(_bytes, weights)) + moments

    _last_size: int | None = None

    def _write_checkpoint(self, aside: Path, target: Path) -> None:
        """This rank's files. The best checkpoint is named as it will be called."""
        if self._saves_shards:
            save_shards(self.model, None if self.args.save_only_model else self.optimizer, aside)  # pyright: ignore[reportArgumentType]
            if self.args.should_save:
                self._save_beside_weights(aside)
        else:
            self.save_model(str(aside), _internal_call=True)
        best = target.parent / f"{PREFIX}{self.state.best_global_step}"
        if self.state.best_global_step and (best == target or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(aside))
            self._save_scaler(str(aside))
            self._save_rng_state(str(aside))
        torch.save(self.state_of_method(), aside / f"{self.args.process_index}_{STATE_FILE}")
        flush(aside / f"{self.args.process_index}_{STATE_FILE}")
        if self.args.should_save:
            self._save_callbacks()
            self.state.save_to_json(str(aside / "trainer_state.json"))

    @property
    def _saves_shards(self) -> bool:
        return is_sharded(self.model) and saves_shards(self.args)  # pyright: ignore[reportArgumentType]

    def _save_beside_weights(self, folder: Path) -> None:
        """What a checkpoint of shards holds of a model's folder."""
        base = unwrap(self.model)  # pyright: ignore[reportArgumentType]
        base.config.save_pretrained(folder)
        adapters: Any = getattr(self.model, "peft_config", {})
        for adapter in adapters.values():
            adapter.save_pretrained(str(folder))
        processor: Any = self.processing_class
        processor.save_pretrained(folder)

    def _save_callbacks(self) -> None:
        """Update the callbacks' states in the trainer's state, as transformers does before it saves that."""
        found: Any = self.state.stateful_callbacks
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name, state = type(callback).__name__, callback.state()
                found[name] = [*found[name], state] if isinstance(found[name], list) else state

    def _publish_checkpoint(self, aside: Path, target: Path) -> None:
        if not self.args.should_save:
            return
        num_ranks = self.args.world_size
        missing = [rank for rank in range(num_ranks) if not (aside / f"{rank}_{STATE_FILE}").exists()]
        if missing and not self.args.save_on_each_node:
            raise DiskError(
                f"{target} lacks the files of ranks {missing}: output_dir must be a folder that all ranks share."
            )
        flush_folder(aside)
        manifest = write_manifest(
            aside,
            step=self.state.global_step,
            num_ranks=num_ranks,
            resumable=not self.args.save_only_model,
            run=self.identity,
        )
        flush(aside)
        self.run_folder.publish(aside, target)
        self._last_size = manifest.size
        self.run_folder.rotate(self.args.save_total_limit, keep=self.state.best_model_checkpoint)

    def _refuse_non_finite_weights(self) -> None:
        """Weights that are no numbers never replace good ones on disk.

        Raises:
            NonFiniteError: with the names of some of them.
        """
        on_every_rank(self._check_weights)

    def _check_weights(self) -> None:
        named = [(name, local(weight)) for name, weight in self.model.named_parameters() if weight.requires_grad]  # pyright: ignore[reportOptionalMemberAccess]
        if bad := [name for name, weight in named if not weight.detach().isfinite().all()]:
            raise NonFiniteError(
                f"step {self.state.global_step}: {len(bad)} of {len(named)} trained tensors hold NaN or infinite values (the first is "
                f"{bad[0]}), so nothing is saved; earlier checkpoints stay as they are. Lower learning_rate, or set max_grad_norm."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save a folder that plain transformers loads, with weights in the dtype of the original checkpoint, and a manifest.

        Checkpoints of transformers' loop keep the float32 weights that a resumed run needs.

        Raises:
            NonFiniteError: a trained weight is NaN or infinite.
            DiskError: it could not be written. A model that was there before is as it was.
        """
        if _internal_call and output_dir is not None:
            self._save_whole(output_dir)
            return
        self._refuse_non_finite_weights()
        target = Path(output_dir or self.args.output_dir)
        aside = target / f"{SAVING}model"
        self._exporting = True
        try:
            self._writing(target, lambda: self._write_model(aside, target))
        finally:
            self._exporting = False
            if self.args.should_save and aside.exists():
                remove_folder(aside)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _write_model(self, aside: Path, target: Path) -> None:
        if self.args.should_save:
            remove_folder(aside)
            aside.mkdir(parents=True)
        self._save_whole(str(aside))
        if not self.args.should_save:
            return
        flush_folder(aside)
        manifest = write_manifest(
            aside, step=self.state.global_step, num_ranks=self.args.world_size, resumable=False, run=self.identity
        )
        flush(aside)
        publish_model(aside, target, manifest)

    def _save_whole(self, folder: str) -> None:
        """Write the whole weights from the first rank, of a model with shards too. All ranks call this together."""
        model: Any = self.model
        state = full_state(model) if is_sharded(model) else None
        if self.args.should_save:
            self._save(folder, state)

    _exporting = False

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self._exporting:
            state = self.model.state_dict() if state_dict is None else state_dict  # pyright: ignore[reportOptionalMemberAccess]
            dtypes = self.checkpoint_dtypes
            state_dict = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in state.items()}
        super()._save(output_dir, state_dict)
        share_as_umask(output_dir or self.args.output_dir)

    # ---- Loading ----------------------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load all weights strictly, as `from_pretrained` does.

        transformers' own loop loads state dictionaries by name. Some families, such as Qwen2.5-VL, are saved under other names than their
        modules have. No name would match, and training would continue from the current weights.
        """
        whole: Any = self.model if model is None else model
        if (Path(resume_from_checkpoint) / SHARDS).is_dir():
            load_shards(whole, resume_from_checkpoint)
            return
        if is_sharded(whole):
            load_full_state(whole, self._saved_state(Path(resume_from_checkpoint)))
            return
        target = unwrap(whole)
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        # float32 represents every narrower value exactly, and copying converts it back.
        saved = type(target).from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        target.load_state_dict(saved.state_dict(), strict=True)

    def _saved_state(self, checkpoint: Path) -> dict[str, Tensor]:
        """The weights of a checkpoint by the names of this run's model, or of its adapter."""
        if isinstance(self.model, PeftModel):
            return load_peft_weights(str(checkpoint), device="cpu")
        model: Any = class_of(unwrap(self.model))  # pyright: ignore[reportArgumentType]
        return model.from_pretrained(checkpoint, dtype=torch.float32).state_dict()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        model: Any = self.model
        if not is_sharded(model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if not self._saves_shards:
            save_optimizer(model, self.optimizer, output_dir, writes=self.args.should_save)
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)  # pyright: ignore[reportArgumentType]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        model: Any = self.model
        holds_shards = checkpoint is not None and (Path(checkpoint) / SHARDS).is_dir()
        if checkpoint is not None and (holds_shards or is_sharded(model)):
            load = load_optimizer_shards if holds_shards else load_optimizer
            load(model, self.optimizer, checkpoint)
            scheduler: Any = self.lr_scheduler
            scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.restore_method(self._state_in(Path(checkpoint)))

    def _state_in(self, checkpoint: Path) -> dict[str, Any]:
        """This rank's state in a checkpoint, of as many ranks or of another number."""
        num_ranks, rank = read_manifest(checkpoint).num_ranks, self.args.process_index
        wanted = [rank] if num_ranks == self.args.world_size else range(num_ranks)
        files = [checkpoint / f"{old}_{STATE_FILE}" for old in wanted]
        states = [torch.load(file, weights_only=True) for file in files]
        return states[0] if num_ranks == self.args.world_size else self.redistributed(states)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As transformers. With another number of ranks, each rank's generators are seeded by the run's seed and the step: dropout draws
        other numbers then. Sampling has seeds of its own."""
        if checkpoint is None or read_manifest(Path(checkpoint)).num_ranks == self.args.world_size:
            super()._load_rng_state(checkpoint)
        else:
            set_seed((self.args.seed + 1_000_003 * self.state.global_step + self.args.process_index) % 2**32)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
