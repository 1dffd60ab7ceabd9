"""The pixel budget of an image."""

from __future__ import annotations

from typing import Any

from boresight.errors import ConfigError, ModelError


def set_pixel_budget(processor: Any, *, min_pixels: int | None = None, max_pixels: int | None = None) -> None:
    """Limit the pixels of an image that the vision tower gets. None keeps the checkpoint's own limit.

    The limits are set on the processor itself, so that whatever is saved or served with it has the same budget. The Qwen-VL
    families count pixels (in `image_processor.size`, as ``shortest_edge`` and ``longest_edge``); the others fix a
    image's size or its tiles instead.

    Raises:
        ConfigError: the limits contradict each other or are below one image token.
        ModelError: the family has no pixel budget.
    """
    if min_pixels is None and max_pixels is None:
        return
    images = getattr(processor, "image_processor", None)
    if images is None:
        raise ModelError("min_pixels and max_pixels need a processor with images; this one has text alone.")
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
        raise ConfigError(f"max_pixels ({high}) is less than one image token ({token} pixels).")
    images.size = type(images.size)(shortest_edge=low, longest_edge=high)
