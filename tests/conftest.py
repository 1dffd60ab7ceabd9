"""Shapes are checked under pytest only: beartype reads the jaxtyping annotations of the rooms that are pure arithmetic."""

from __future__ import annotations

from jaxtyping import install_import_hook

install_import_hook(["boresight.loss", "boresight.advantage", "boresight.types"], "beartype.beartype")
