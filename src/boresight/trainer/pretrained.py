"""How a trainer's options become the arguments of `from_pretrained`."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from boresight.errors import ConfigError
from boresight.model.quantised import read_quantisation
from boresight.trainer.config import TrainerConfig

Config = TypeVar("Config", bound=TrainerConfig)


def from_pretrained_options(args: TrainerConfig) -> dict[str, Any]:
    """The arguments of `from_pretrained` that the options set."""
    own: Any = args.model_init_kwargs or {}
    given: dict[str, Any] = dict(own)
    if given.get("quantization_config") is not None:
        given.setdefault("device_map", {"": args.device})  # transformers would take the first GPU, even with use_cpu
    return given | ({"trust_remote_code": True} if args.trust_remote_code else {})


def quantising(args: Config, quantization_config: Any) -> Config:
    """The configuration with the quantisation that a trainer was passed. The user's object is not changed.

    Raises:
        ConfigError: `model_init_kwargs` has one too.
    """
    given: Any = args.model_init_kwargs or {}
    own = given.get("quantization_config")
    if own is None and quantization_config is None:
        return args
    if own is not None and quantization_config is not None:
        raise ConfigError("quantization_config is set both here and in model_init_kwargs: leave one of them out.")
    changed = copy.copy(args)
    # As an object, whose plain values are equal however it was written: they are part of the run's identity.
    found = read_quantisation(own if quantization_config is None else quantization_config)
    changed.model_init_kwargs = {**given, "quantization_config": found}
    return changed
