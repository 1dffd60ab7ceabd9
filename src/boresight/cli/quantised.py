"""The quantisation of the base, built from flags."""

from __future__ import annotations

from typing import Any

from boresight.cli.options import ModelFlags
from boresight.errors import ConfigError


def check_quantisation(model: ModelFlags, *, trains_adapter: bool) -> None:
    """Check the flags of a quantised base, before anything is loaded.

    Raises:
        ConfigError: both are set, or nothing but the quantised weights is to be trained.
    """
    if model.load_in_4bit and model.load_in_8bit:
        raise ConfigError("--load_in_4bit and --load_in_8bit both say how the base is held: leave one of them out.")
    if (model.load_in_4bit or model.load_in_8bit) and not trains_adapter:
        name = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
        raise ConfigError(
            f"--{name}: quantised weights cannot be trained in full. Train an adapter beside them: --train language=lora (or --use_peft), "
            f"or drop --{name}."
        )


def quantisation_config(model: ModelFlags, compute_dtype: str | None) -> Any:
    """transformers' configuration of bitsandbytes, or None if the base is not quantised.

    Args:
        compute_dtype: what 4-bit layers compute in, such as bfloat16; None: the dtype of the model (`dtype`), else float32.
    """
    if not (model.load_in_4bit or model.load_in_8bit):
        return None
    from transformers import BitsAndBytesConfig  # slow, and only for this

    if model.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    own = None if model.dtype in (None, "auto") else model.dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=compute_dtype or own,  # pyright: ignore[reportArgumentType] -- it takes names too
    )
