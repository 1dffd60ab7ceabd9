"""The options of the model room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """How a model is loaded, and how groups run through it."""

    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Further arguments of `from_pretrained`, where the model is given by id or folder."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with a checkpoint."})
    layout: str = field(
        default="auto",
        metadata={
            "help": "'shared' runs a prompt once with its completions as branches, 'rows' repeats it for each, 'auto' shares for the "
            "families that are proven to. The results are the same."
        },
    )
    max_logit_mib: int = field(default=256, metadata={"help": "Logits that may be alive at once, in MiB."})
    vision_cache_gib: float = field(
        default=2.0, metadata={"help": "Image features kept while nothing that made them is trained, in GiB."}
    )
