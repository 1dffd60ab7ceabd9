"""Tiny vision-language models of the real transformers classes."""

from boresight.demo.tiny.build import FAMILIES, build_tiny
from boresight.demo.tiny.sizes import Sizes

__all__ = ["FAMILIES", "Sizes", "build_tiny"]
