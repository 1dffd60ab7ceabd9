"""The options of DPO, MPO and every other sum of preference losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from boresight.errors import ConfigError
from boresight.loss.preference_options import PreferenceLossOptions, check_preference_loss
from boresight.options import check_options
from boresight.trainer.config import NOTHING_SAMPLED, UNSUPPORTED, TrainerConfig, strict
from boresight.trainer.reference import ReferenceSyncConfig, check_reference_sync

OVERLONG = ("error", "drop", "truncate_completion")


@strict
@dataclass
class DPOConfig(PreferenceLossOptions, ReferenceSyncConfig, TrainerConfig):
    """Options of `DPOTrainer`. Names and defaults are TRL's, except `max_length`: no limit, since a cut image is no image.

    `per_device_train_batch_size` counts pairs.
    """

    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED | NOTHING_SAMPLED

    learning_rate: float = field(default=1e-6, metadata={"help": "Peak learning rate of AdamW."})
    shuffle_dataset: bool = field(
        default=True, metadata={"help": "Draw the training pairs in a new random order each epoch."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Switch dropout off in policy and reference."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a prompt with either answer, images expanded. None: no limit."},
    )
    overlong_pairs: Literal["error", "drop", "truncate_completion"] = field(
        default="error",
        metadata={
            "help": "What becomes of pairs beyond max_length: 'error' names them, 'drop' leaves them out, 'truncate_completion' cuts "
            "answers from their end, never an image. Decided and counted before training."
        },
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={
            "help": "Compute the reference's log-probabilities of all pairs before training and keep them on disk, so that no "
            "reference model is held beside the policy."
        },
    )
    precompute_ref_batch_size: int | None = field(
        default=None,
        metadata={"help": "Pairs of one pass while precomputing. None: per_device_train_batch_size."},
    )
    precomputed_ref_path: str | None = field(
        default=None,
        metadata={
            "help": "The file that keeps precomputed log-probabilities. None: reference_logps.safetensors in the run folder."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self)
        check_preference_loss(self)
        check_reference_sync(self)
        if self.overlong_pairs not in OVERLONG:
            raise ConfigError(f"overlong_pairs={self.overlong_pairs!r} is not one of {', '.join(OVERLONG)}.")
        if self.overlong_pairs != "error" and self.max_length is None:
            raise ConfigError(f"overlong_pairs={self.overlong_pairs!r} has no effect: set max_length.")
        if self.precompute_ref_log_probs and self.sync_ref_model:
            raise ConfigError(
                "precompute_ref_log_probs=True computes the reference once, and sync_ref_model=True moves it: set one of them."
            )
        if not self.precompute_ref_log_probs:
            for option in ("precompute_ref_batch_size", "precomputed_ref_path"):
                if getattr(self, option) is not None:
                    raise ConfigError(f"{option} has no effect: set precompute_ref_log_probs=True.")
