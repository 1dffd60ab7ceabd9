"""boresight at work on a case with vLLM's engine in its process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from ours_side import OurSide

from boresight import GRPOTrainer


class VLLMSide(OurSide):
    """Samples by vLLM, on images and prompts that its caches have never seen."""

    name = "boresight, vLLM"
    options: ClassVar[dict[str, Any]] = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.1}
    trainer: Any

    def prepare(self, case: Any) -> None:
        if getattr(self, "trainer", None) is not None:
            raise RuntimeError("one engine a process: start a worker for each case")
        super().prepare(case)

    def endless(self, trainer: GRPOTrainer) -> None:
        """Completions run to their limit: vLLM knows no id below 0, so that it gets no stop ids at all."""
        sampler: Any = trainer.sampler
        sampler.inner.facts = replace(trainer.facts, stop_ids=())

    def reset(self) -> None:
        super().reset()
        engine: Any = self.trainer.sampler.inner.engine
        engine.reset_caches(images=True)
        engine._llm.reset_mm_cache()
