"""Tools that a policy may call while it answers: their description, its calls, and their results; and some that are ready.

functions ──schema──▶ prompt        text ──parsing──▶ calls ──running──▶ outcomes ──results──▶ texts and images
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boresight.lazy import lazy_names

if TYPE_CHECKING:
    from boresight.tools.arithmetic import calculator
    from boresight.tools.looking import ImageTools, PixelImageTools, RelativeImageTools

_HOMES = {
    "ImageTools": "looking",
    "PixelImageTools": "looking",
    "RelativeImageTools": "looking",
    "calculator": "arithmetic",
}

__all__ = ["ImageTools", "PixelImageTools", "RelativeImageTools", "calculator"]


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return list(__all__)
