"""The options of the model room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from boresight.options import Range, option


@dataclass
class ModelOptions:
    """How a model is loaded, and how its forward pass runs."""

    heading: ClassVar[str] = "model"

    model_init_kwargs: dict[str, Any] | str | None = option(
        None, "Further arguments of `from_pretrained`, if the model is given by id or folder."
    )
    trust_remote_code: bool = option(False, "Run model code that comes with a checkpoint.")
    router_aux_loss_coef: Annotated[float | None, Range(at_least=0)] = option(
        None,
        "Weight of the load-balancing loss of a mixture of experts, which is added to the loss. None: the model's own. 0: none.",
    )
    layout: Literal["auto", "shared", "rows", "plain"] = option(
        "auto",
        "'shared' runs a prompt once with its completions as branches. 'rows' repeats it for each completion. 'plain' runs the model's own "
        "forward for each completion, images included. The results are the same. 'auto' takes the first of them that "
        "equals the model's own forward on made-up groups.",
    )
    max_logit_mib: Annotated[int, Range(at_least=1)] = option(256, "Most logits in memory at once, in MiB.")
    vision_cache_gib: Annotated[float, Range(at_least=0)] = option(
        2.0, "Most image features to cache while vision tower and projector are frozen, in GiB."
    )
