"""A tiny Qwen2.5-VL of the real transformers class: what the demo, the notebooks and the benchmarks train."""

from boresight.demo.tiny.build import build_tiny
from boresight.demo.tiny.sizes import Sizes

__all__ = ["Sizes", "build_tiny"]
