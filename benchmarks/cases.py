"""What is compared: one `Case` per row of the table, with the shapes and goals of the engine's specification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["update", "sample", "step", "pairs"]
"""What is timed.

update   forward and backward of given completions, with the no-grad passes (old, reference) that the recipe asks for before it
sample   sampling completions alone
step     a whole GRPO step: loading, sampling, rewards, passes, backward, optimizer
pairs    a DPO or MPO step on given pairs: reference pass, forward, backward
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison.

    Every prompt has one image. A micro-batch is one group (K completions) in GRPO and all pairs in DPO, on both sides.
    """

    name: str
    kind: Kind
    image_tokens: int
    prompt_tokens: int
    """P, the image's placeholders included."""
    completion_tokens: int
    """C, of every completion: no stop token can be sampled, so both sides do the same work."""
    num_completions: int
    """K"""
    num_prompts: int = 1
    old: bool = False
    """Whether the recipe needs log-probabilities of the weights at rollout (several updates per rollout)."""
    beta: float = 0.0
    """Weight of the divergence from the reference; not 0 adds a reference pass."""
    frozen: bool = False
    """Whether the vision tower and the projector are left untrained."""
    checkpointing: bool = False
    """Whether activations are recomputed in the backward pass."""
    lora: bool = False
    """Whether an adapter of the language model is trained instead of the weights; the reference is the model without it."""
    precomputed: bool = False
    """Whether boresight reads the reference's log-probabilities from its table. TRL cannot precompute them for images."""
    family: str = "qwen2_5_vl"
    """Of the model; see `workload.build_model`."""
    turn_image_tokens: int = 0
    """Of the image that a tool's result brings in the middle of every completion, each its own; 0: no tool is called."""
    losses: tuple[str, ...] = ("sigmoid",)
    """Of pairs."""
    goal: float | None = None
    """The speed-up to reach; None where the goal is 90 % of the ideal only."""
    short: bool = False
    """Whether `--short` runs it."""

    @property
    def frozen_tower(self) -> bool:
        """Whether no weight that an image passes through is trained."""
        return self.frozen or self.lora

    @property
    def num_rows(self) -> int:
        """Completions of one run."""
        return self.num_prompts * self.num_completions


# fmt: off
SMALL: dict[str, Any] = {"image_tokens": 256, "prompt_tokens": 297}
LARGE: dict[str, Any] = {"image_tokens": 1024, "prompt_tokens": 1100}
PAIR: dict[str, Any] = {"num_completions": 2, "beta": 0.1}
MPO = ("sigmoid", "bco_pair", "sft")

CASES = (
    Case("update C=32", "update", **SMALL, completion_tokens=32, num_completions=8, goal=6.5, short=True),
    Case("update C=128", "update", **SMALL, completion_tokens=128, num_completions=8, goal=5.0),
    Case("update P=1100", "update", **LARGE, completion_tokens=128, num_completions=8),
    Case("update +old +ref", "update", **SMALL, completion_tokens=32, num_completions=8, old=True, beta=0.04),
    Case("update +old +ref C=128", "update", **SMALL, completion_tokens=128, num_completions=8, old=True, beta=0.04),
    Case("update frozen", "update", **SMALL, completion_tokens=32, num_completions=8, old=True, beta=0.04, frozen=True),
    Case("update frozen C=128", "update", **SMALL, completion_tokens=128, num_completions=8, old=True, beta=0.04, frozen=True),
    Case("update recompute", "update", **SMALL, completion_tokens=128, num_completions=8, checkpointing=True),
    Case("update two turns", "update", **SMALL, completion_tokens=64, num_completions=8, turn_image_tokens=64),
    Case("update two turns C=256", "update", **SMALL, completion_tokens=256, num_completions=8, turn_image_tokens=256),
    Case("update hybrid C=32", "update", **SMALL, completion_tokens=32, num_completions=8, family="qwen3_5"),
    Case("update hybrid C=128", "update", **SMALL, completion_tokens=128, num_completions=8, family="qwen3_5"),
    Case("update hybrid MoE C=32", "update", **SMALL, completion_tokens=32, num_completions=8, family="qwen3_5_moe"),
    Case("update hybrid MoE C=128", "update", **SMALL, completion_tokens=128, num_completions=8, family="qwen3_5_moe"),
    Case("sample C=32", "sample", **SMALL, completion_tokens=32, num_completions=8, num_prompts=2, goal=5.0, short=True),
    Case("sample C=128", "sample", **SMALL, completion_tokens=128, num_completions=8, num_prompts=2, goal=2.5),
    Case("sample P=1100", "sample", **LARGE, completion_tokens=128, num_completions=8, num_prompts=2),
    Case("step C=32", "step", **SMALL, completion_tokens=32, num_completions=8, num_prompts=2, goal=6.0, short=True),
    Case("step C=128", "step", **SMALL, completion_tokens=128, num_completions=8, num_prompts=2, goal=3.5),
    Case("step C=32 +ref", "step", **SMALL, completion_tokens=32, num_completions=8, num_prompts=2, beta=0.04, goal=6.0),
    Case("step C=128 +ref", "step", **SMALL, completion_tokens=128, num_completions=8, num_prompts=2, beta=0.04, goal=3.5),
    Case("step frozen", "step", **SMALL, completion_tokens=32, num_completions=8, num_prompts=2, beta=0.04, frozen=True),
    Case("step P=1100", "step", **LARGE, completion_tokens=128, num_completions=8, num_prompts=2),
    Case("DPO C=32", "pairs", **SMALL, **PAIR, completion_tokens=32, goal=1.85, short=True),
    Case("DPO C=128", "pairs", **SMALL, **PAIR, completion_tokens=128, goal=1.75),
    Case("DPO precomputed C=32", "pairs", **SMALL, **PAIR, completion_tokens=32, precomputed=True, goal=2.4),
    Case("DPO precomputed C=128", "pairs", **SMALL, **PAIR, completion_tokens=128, precomputed=True, goal=2.2),
    Case("DPO frozen", "pairs", **SMALL, **PAIR, completion_tokens=128, frozen=True),
    Case("DPO LoRA", "pairs", **SMALL, **PAIR, completion_tokens=128, lora=True),
    Case("DPO LoRA precomputed", "pairs", **SMALL, **PAIR, completion_tokens=128, lora=True, precomputed=True),
    Case("MPO C=32", "pairs", **SMALL, **PAIR, completion_tokens=32, losses=MPO, goal=1.85),
    Case("MPO C=128", "pairs", **SMALL, **PAIR, completion_tokens=128, losses=MPO, goal=1.75),
    Case("MPO precomputed C=32", "pairs", **SMALL, **PAIR, completion_tokens=32, losses=MPO, precomputed=True, goal=2.4),
    Case("MPO precomputed C=128", "pairs", **SMALL, **PAIR, completion_tokens=128, losses=MPO, precomputed=True, goal=2.2),
    Case("MPO LoRA", "pairs", **SMALL, **PAIR, completion_tokens=128, losses=MPO, lora=True),
    Case("MPO LoRA precomputed", "pairs", **SMALL, **PAIR, completion_tokens=128, losses=MPO, lora=True, precomputed=True),
    Case("MPO P=1100", "pairs", **LARGE, **PAIR, completion_tokens=128, losses=MPO),
)

TINY: dict[str, Any] = {"image_tokens": 16, "prompt_tokens": 60, "completion_tokens": 4}

QUICK_CASES = (
    Case("update", "update", **TINY, num_completions=3, old=True, beta=0.04),
    Case("update frozen recompute", "update", **TINY, num_completions=3, beta=0.04, frozen=True, checkpointing=True),
    Case("update two turns", "update", **TINY, num_completions=3, turn_image_tokens=4),
    Case("update hybrid", "update", **TINY, num_completions=3, family="qwen3_5"),
    Case("update hybrid MoE", "update", **TINY, num_completions=3, family="qwen3_5_moe"),
    Case("sample", "sample", **TINY, num_completions=3, num_prompts=2),
    Case("step", "step", **TINY, num_completions=3, num_prompts=2, goal=1.0),
    Case("DPO precomputed", "pairs", **TINY, **PAIR, precomputed=True),
    Case("MPO LoRA", "pairs", **TINY, **PAIR, losses=MPO, lora=True),
)
"""Every kind of work and every switch once, in seconds: `--quick` shows that all of it runs."""
# fmt: on
