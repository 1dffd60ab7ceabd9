"""Workers whose second data-parallel replica spoils one number of its copy of the model, once, while a file exists."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from boresight.rollout.vllm.inside.worker import Extension

SPOIL = "BORESIGHT_TEST_SPOIL"
"""The environment variable with the path of a file that names a parameter. Its last number is changed, and the file is removed."""


class SpoilingExtension(Extension):
    @torch.no_grad()
    def boresight_fingerprints(self, argument: str) -> dict[str, Any]:
        order = Path(os.environ[SPOIL])
        if self.model_runner.vllm_config.parallel_config.data_parallel_index == 1 and order.exists():
            dict(self.model_runner.get_model().named_parameters())[order.read_text()].view(-1)[-1] += 1.0
            order.unlink()
        return super().boresight_fingerprints(argument)
