"""What a plan needs to know of a model, from its config alone: weights, activations and floating-point operations, by part.

Weights are counted exactly, on a model without memory (`meta`). Activations and operations are those of a pre-norm transformer with a
gated MLP; `benchmarks/planner.py` compares them with what tiny models take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from boresight.errors import ModelError
from boresight.families import Part, family_of
from boresight.model.part_options import PARTS
from boresight.modules import untrained


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of a language model or of a vision tower."""

    num_layers: int
    width: int
    """Of the hidden states."""
    kv_width: int
    """Of the keys of one token: heads of keys times the width of a head."""
    mlp_width: int
    """Of the hidden states inside an MLP; of a mixture, of the experts that a token visits together."""

    def layer_bytes(self, element: float) -> float:
        """Bytes per token of what one layer keeps for its backward pass, with attention scores that are never stored.

        The normed input and its two factors, the residual, queries, attention's output, keys and values, and four tensors of the MLP
        (gate, its activation, up, their product); while the MLP's gradients are computed, two more of its width are alive.

        Args:
            element: bytes of a number.
        """
        return element * (8 * self.width + 2 * self.kv_width + 6 * self.mlp_width)

    def kept_bytes(self, element: float, *, checkpointing: bool) -> float:
        """Bytes per token that stay from the forward pass to the backward pass: every layer's input, or all of every layer."""
        if checkpointing:
            return element * self.num_layers * self.width
        return (self.num_layers - 1) * (self.layer_bytes(element) - 2 * element * self.mlp_width)


@dataclass(frozen=True, slots=True)
class Size:
    """What a plan needs to know of a model."""

    weights: Mapping[Part, int]
    """Weights of each part; tied ones count once."""
    language: Stack
    vision: Stack | None
    """None where the config does not say how its tower is built; its activations are then not counted."""
    num_active: int
    """Weights of the language model's layers that compute a token: without embeddings, head, and experts that it does not visit."""
    num_head: int
    """Weights of the head, tied or not."""
    num_in_layers: int
    """Weights of the language model's layers, with all experts."""
    patches_per_token: float
    """Patches that the tower reads for a token of an image."""

    @property
    def num_weights(self) -> int:
        return sum(self.weights.values())


def size_of(model: str) -> Size:
    """The size of a model from its config.

    Args:
        model: a folder or a hub id.

    Raises:
        ModelError: there is no config of a vision-language model at that place.
    """
    try:
        return size_of_config(AutoConfig.from_pretrained(model))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model!r} has no config of a vision-language model: {' '.join(str(error).split())}"
        ) from error


def size_of_config(config: Any) -> Size:
    """The size of a model of this config.

    Raises:
        ValueError: it is not the config of a vision-language model.
    """
    with torch.device("meta"):
        made: Any = untrained(config)
    config = made.config
    family = family_of(config.model_type)
    counts = dict.fromkeys(PARTS, 0)
    for name, weight in made.named_parameters():
        counts[family.part(name)] += weight.numel()
    text: Any = config.get_text_config()
    head, embeddings = made.get_output_embeddings(), made.get_input_embeddings()
    outside = {id(module.weight): module.weight.numel() for module in (head, embeddings) if module is not None}
    in_layers = counts["language"] - sum(outside.values())
    return Size(
        weights=counts,
        language=_language(text),
        vision=_vision(getattr(config, "vision_config", None)),
        num_active=in_layers - _idle_expert_weights(made, text),
        num_head=0 if head is None else head.weight.numel(),
        num_in_layers=in_layers,
        patches_per_token=_patches_per_token(config),
    )


def _first(config: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(config, name, None)) is not None), None)


def _language(text: Any) -> Stack:
    width, heads = text.hidden_size, text.num_attention_heads
    kv_heads = _first(text, "num_key_value_heads") or heads
    head_width = _first(text, "head_dim") or width // heads
    experts = _first(text, "num_experts_per_tok", "num_experts_per_token", "top_k_experts")
    expert_width = _first(text, "moe_intermediate_size")
    mlp = expert_width * experts if experts and expert_width else _first(text, "intermediate_size") or 4 * width
    return Stack(text.num_hidden_layers, width, kv_heads * head_width, mlp)


def _vision(config: Any) -> Stack | None:
    width = _first(config, "embed_dim", "hidden_size")  # Qwen2-VL's hidden_size is the language model's
    depth = _first(config, "depth", "num_hidden_layers")
    if not isinstance(width, int) or not isinstance(depth, int):
        return None
    ratio = _first(config, "mlp_ratio")
    mlp = _first(config, "intermediate_size") or int((ratio or 4) * width)
    return Stack(depth, width, width, mlp)


def _patches_per_token(config: Any) -> float:
    """How many patches a projector joins, as the options of known families say; 1 without one of these options."""
    vision = getattr(config, "vision_config", None)
    if merged := _first(vision, "spatial_merge_size"):  # Qwen-VL
        return float(merged**2)
    if merged := _first(config, "spatial_merge_size"):  # Mistral 3
        return float(merged**2)
    if shuffled := _first(config, "scale_factor"):  # SmolVLM, Idefics 3
        return float(shuffled**2)
    if kept := _first(config, "downsample_ratio"):  # InternVL
        return kept**-2
    tokens, image, patch = (
        _first(config, "mm_tokens_per_image"),
        _first(vision, "image_size"),
        _first(vision, "patch_size"),
    )
    return (image // patch) ** 2 / tokens if tokens and isinstance(image, int) else 1.0  # Gemma 3


def _idle_expert_weights(model: nn.Module, text: Any) -> int:
    """Weights of the experts that a token does not visit."""
    experts = _first(text, "num_experts", "num_local_experts", "n_routed_experts")
    visited = _first(text, "num_experts_per_tok", "num_experts_per_token", "top_k_experts")
    if not experts or not visited:
        return 0
    held = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    return int(held * (1 - visited / experts))
