"""boresight at work on a case with vLLM's engine in its process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from ours_side import OurSide


class VLLMSide(OurSide):
    """Samples by vLLM, on images and prompts that its caches have never seen."""

    sampling: ClassVar[dict[str, Any]] = {"use_vllm": True, "vllm_gpu_memory_utilization": 0.1}

    def make_endless(self, trainer: Any) -> None:
        """vLLM knows no id below 0, so it gets no stop ids at all."""
        trainer.sampler.engine.facts = replace(trainer.facts, stop_ids=())

    def reset(self) -> None:
        super().reset()
        engine = self.trainer.sampler.engine.engine
        engine.reset_caches(images=True)
        engine._llm.reset_mm_cache()

    def release(self) -> None:
        if self.trainer is not None:
            self.trainer.sampler.close()
        super().release()
