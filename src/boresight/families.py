"""What is special about a family of models: one record each, and one for all that are not listed.

Only what cannot be asked stands here. The rest is asked of the model, its processor or the engine where it is needed, so that it also
holds for families that nobody listed:

    positions              `get_rope_index` of the model; without one, tokens are counted (model/positions.py)
    decoder and head       `get_decoder`, `get_output_embeddings` (model/vision.py)
    what stands between hidden states and probabilities    the model's own logits (model/head.py)
    kinds of layers        `layer_types` of its text config (`why_no_branches`, below)
    arguments of a forward its signature (modules.py)
    placeholder, marks     the processor's chat template and its tokenizer (data/texts.py)
    pixel budget           `valid_kwargs` of the image processor (data/budget.py)
    ids that only a processor may place                    names in configs and tokenizer (model/load.py)
    names in a saved folder                                transformers' conversion table (model/export.py)
    names in vLLM          vLLM's own modules (rollout/vllm/delivery.py)

The module lies under the rooms because model, rollout, data and the command line all need it. It holds data and no arrays, and
imports nothing heavy. A field says what is the case; the room that it concerns decides what follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Part = Literal["vision", "projector", "language"]
"""What a weight belongs to: what reads pixels, what turns its features into tokens, or what reads tokens."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family of models, as transformers' `model_type` names it. The defaults hold for families that are not listed."""

    # ---- The forward pass -------------------------------------------------------------------------------------------------------------

    shares: bool = False
    """Whether tests compare its shared layout with plain transformers: `layout="auto"` shares for such families alone."""
    image_blocks: bool = False
    """Whether the tokens of an image see one another both ways, under a mask that is causal otherwise."""
    casts_features: bool = False
    """Whether its forward casts image features to the dtype of its first weights, which must be that of its embeddings then."""
    token_types: tuple[str, ...] = ("mm_token_type_ids", "token_type_ids")
    """Names of the processor's output and of the forward's argument that hold each token's kind: 0 text, 1 image, 2 video."""
    inputs_beside_features: tuple[str, ...] = ("image_grid_thw",)
    """Image tensors of the processor that the model reads even where it is given ready image features: its positions depend on them."""

    # ---- Weights ----------------------------------------------------------------------------------------------------------------------

    vision: tuple[str, ...] = ("visual", "vision_tower", "vision_model")
    """Parts of the names of vision modules."""
    projector: tuple[str, ...] = (
        "multi_modal_projector",
        "mm_projector",
        "connector",
        "aligner",
        "merger",
        "image_newline",
    )
    """Parts of the names of what stands between vision and language; in a vision module's name they win."""

    # ---- The processor ----------------------------------------------------------------------------------------------------------------

    image_grids: str = "image_grid_thw"
    """The tensor [images, 3] of a processor that lays the patches of all images one behind another: it says which are whose, so images
    can be separated. Other processors cut tiles by how many images there are, or pad images to a common size."""
    token_outputs: tuple[str, ...] = (
        "input_ids",
        "attention_mask",
        "mm_token_type_ids",
        "token_type_ids",
        "offset_mapping",
        "text_replacement_offsets",
    )
    """What the processor returns for tokens. All else that it returns belongs to the images."""
    uncounted_image_tokens: int = 16
    """At most so many tokens of an image are missing where the processor counts them from its size."""

    def part(self, name: str) -> Part:
        """What a weight or module of this name belongs to."""
        if any(word in name for word in self.projector):
            return "projector"
        return "vision" if any(word in name for word in self.vision) else "language"

    @property
    def not_language(self) -> str:
        """A regular expression for the names of all vision and projector modules, as PEFT's `exclude_modules` takes it."""
        return f".*({'|'.join((*self.vision, *self.projector))}).*"


UNKNOWN = Family()
"""Any family that is not listed."""

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        # The processor's count leaves out the line breaks around an image.
        "gemma3": Family(shares=True, image_blocks=True),
        "idefics3": Family(shares=True),
        "internvl": Family(shares=True),
        "llava": Family(shares=True),
        "llava_next": Family(shares=True),
        # It tiles a lone image only, so the processor's count is too high where a prompt has several, and vLLM expands those otherwise
        # than transformers does.
        "llava_onevision": Family(shares=True),
        "qwen2_5_vl": Family(shares=True),
        "qwen2_vl": Family(shares=True),
        "qwen3_vl": Family(shares=True),
        "smolvlm": Family(shares=True, casts_features=True),
    }
)
"""`model_type` → what is special about it."""


def family_of(model_type: str) -> Family:
    """The record of a family."""
    return FAMILIES.get(model_type, UNKNOWN)


BRANCHING_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers, as a text config's `layer_types` calls them, in which completions can be branches of one prompt."""


def why_no_branches(text_config: Any) -> str | None:
    """What of a text config keeps completions from being branches of one prompt, in training as in sampling; None when nothing does."""
    foreign = set(getattr(text_config, "layer_types", None) or ()) - BRANCHING_LAYERS
    if foreign:
        return f"its layers of type {', '.join(sorted(foreign))} cannot branch, only those of full and of sliding attention can"
    if getattr(text_config, "attn_logit_softcapping", None) is not None:
        return "it caps its attention scores"
    return None
