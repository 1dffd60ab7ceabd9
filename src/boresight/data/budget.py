"""How many pixels an image may have: the one place that says so."""

from __future__ import annotations

from typing import Any

from boresight.errors import ConfigError, ModelError


def set_pixel_budget(processor: Any, *, min_pixels: int | None = None, max_pixels: int | None = None) -> None:
    """Bound the pixels of an image as the vision tower sees it. None leaves the checkpoint's own bound.

    Set on the processor itself, so that whatever is saved or served with it keeps the same budget. The Qwen-VL
    families count pixels (in `image_processor.size`, as ``shortest_edge`` and ``longest_edge``); the others fix a
    image's size or its tiles instead.

    Raises:
        ConfigError: the bounds contradict each other or hold less than one token's pixels.
        ModelError: the family has no pixel budget.
    """
    if min_pixels is None and max_pixels is None:
        return
    images = getattr(processor, "image_processor", None)
    if images is None:
        raise ModelError("min_pixels and max_pixels need a processor with images; this one only reads text.")
    if "max_pixels" not in getattr(images.valid_kwargs, "__annotations__", {}):
        raise ModelError(
            f"{type(images).__name__} has no pixel budget: drop min_pixels and max_pixels, and set what this family "
            f"does have on the processor that you pass (image_processor.size is {images.size})."
        )
    low = min_pixels if min_pixels is not None else images.size["shortest_edge"]
    high = max_pixels if max_pixels is not None else images.size["longest_edge"]
    token = (images.patch_size * images.merge_size) ** 2
    if low > high:
        raise ConfigError(f"min_pixels ({low}) is larger than max_pixels ({high}).")
    if high < token:
        raise ConfigError(f"max_pixels ({high}) holds less than one image token ({token} pixels).")
    images.size = type(images.size)(shortest_edge=low, longest_edge=high)
