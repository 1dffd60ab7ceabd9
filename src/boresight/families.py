"""What is special about a family of models: one record per family, and one for all families that are not listed.

A record holds only what cannot be read elsewhere. The rest is read from the model, its processor or the engine where it is needed, so
that it also works for families that are not listed:

    layout, sampling                                       the model's own forward (model/verification.py, rollout/choice.py)
    positions              `get_rope_index` of the model; without one, tokens are counted (own_forward.py)
    decoder and head       `get_decoder`, `get_output_embeddings` (model/vision.py)
    scale and cap of logits                                the model's own logits (model/head.py)
    kinds of layers        `layer_types` of its text config (`why_no_branches`, below); classes of its layers (state_layers.py)
    arguments of a forward its signature (modules.py)
    placeholder, marks     the processor's chat template and its tokenizer (data/texts.py)
    pixel budget           `valid_kwargs` of the image processor (data/budget.py)
    ids that only a processor may place                    names in configs and tokenizer (model/load.py)
    names in a saved folder                                transformers' conversion table (model/export.py)
    names in vLLM          vLLM's own modules (rollout/vllm/inside/delivery.py)

The module lies below the rooms because model, rollout, data and the command line all need it. It holds no arrays and imports nothing
heavy. A field states a fact; the room that reads it decides what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from boresight.state_layers import STATE_KINDS

Part = Literal["vision", "projector", "language"]
"""The part of the model that a weight belongs to: the vision tower, the projector that turns its features into tokens, or the language
model."""


Blocks = Literal["image", "image in windows", "prompt"]
"""Which tokens attend to one another bidirectionally, under an otherwise causal mask: those of an image, those of an image in sliding
layers only, or those of the whole prompt."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family of models, as transformers' `model_type` names it. The defaults hold for families that are not listed."""

    # ---- The forward pass -------------------------------------------------------------------------------------------------------------

    blocks: Blocks | None = None
    """Which tokens attend to one another bidirectionally, see `bidirectional_blocks`."""
    casts_features: bool = False
    """Whether its forward casts image features to the dtype of its first weights. Its embeddings must then have the same dtype."""
    token_types: tuple[str, ...] = ("mm_token_type_ids", "token_type_ids")
    """Names of the processor output and forward argument that hold each token's type: 0 text, 1 image, 2 video."""

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
    """Parts of the names of modules between vision tower and language model. They take precedence over `vision`."""

    # ---- The processor ----------------------------------------------------------------------------------------------------------------

    image_grids: str = "image_grid_thw"
    """The tensor [images, 3] of a processor that concatenates the patches of all images. It gives each image's number of patches, so
    images can be separated. Other processors choose tiles by the number of images, or pad images to a common size."""
    places_image: bool = False
    """Whether the processor itself puts an image's tokens before every text. Texts then have no placeholder, and every row one image."""
    uncounted_image_tokens: int = 16
    """How many tokens per image, at most, the processor leaves out when it counts them from the image's size."""

    def part(self, name: str) -> Part:
        """The part that a weight or module of this name belongs to."""
        if any(word in name for word in self.projector):
            return "projector"
        return "vision" if any(word in name for word in self.vision) else "language"

    def names_a_part(self, text: str) -> bool:
        """Whether a name, or a pattern of names, contains the name of a vision module or projector."""
        return any(word in text for word in (*self.vision, *self.projector))

    def names_of(self, *parts: Part) -> str:
        """A regular expression for the whole names of all modules in these parts, as PEFT's `exclude_modules` takes it."""
        projector, vision = f".*({'|'.join(self.projector)})", f".*({'|'.join(self.vision)})"
        patterns: dict[Part, str] = {
            "vision": f"(?!{projector}){vision}.*",
            "projector": f"{projector}.*",
            "language": f"(?!{projector})(?!{vision}).*",
        }
        return "|".join(f"(?:{patterns[part]})" for part in parts)

    @property
    def not_language(self) -> str:
        """A regular expression for the names of all vision and projector modules."""
        return f".*({'|'.join((*self.vision, *self.projector))}).*"


UNKNOWN = Family()
"""Any family that is not listed."""

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        # It ignores a second image, and its forward needs one.
        "blip-2": Family(places_image=True, projector=("qformer", "query_tokens", "language_projection")),
        # The processor's count leaves out the line breaks around an image.
        "gemma3": Family(blocks="image"),
        # It cuts tiles only when a prompt has one image. With several, the processor's count is too high, and vLLM expands them
        # differently from transformers.
        "llava_onevision": Family(),
        "paligemma": Family(blocks="prompt"),
        # It embeds images and sounds inside its language model.
        "phi4_multimodal": Family(
            vision=("img_processor", "audio_embed"), projector=("img_projection", "img_feature_extensor")
        ),
        "smolvlm": Family(casts_features=True),
    }
)
"""`model_type` → what is special about it."""


def family_of(model_type: str) -> Family:
    """The record of a family."""
    return FAMILIES.get(model_type, UNKNOWN)


def bidirectional_blocks(family: Family, text_config: Any) -> Blocks | None:
    """Which tokens of a prompt attend to one another bidirectionally. Gemma 4's config says so itself, and not every size does."""
    return (
        "image in windows" if getattr(text_config, "use_bidirectional_attention", None) == "vision" else family.blocks
    )


BRANCHING_LAYERS = frozenset({"full_attention", "sliding_attention"}) | STATE_KINDS
"""Layer types (names in a text config's `layer_types`) in which completions can be branches of one prompt."""


def why_no_branches(text_config: Any) -> str | None:
    """Why completions cannot be branches of one prompt under this text config, in training or sampling; None if they can."""
    foreign = set(getattr(text_config, "layer_types", None) or ()) - BRANCHING_LAYERS
    if foreign:
        return (
            f"its layers of type {', '.join(sorted(foreign))} cannot branch, only those of full and of sliding attention, and those "
            "with a state, can"
        )
    if getattr(text_config, "attn_logit_softcapping", None) is not None:
        return "it caps its attention scores"
    return None
