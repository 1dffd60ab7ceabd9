"""Which layers have a state: a recurrence, or a causal convolution, whose output depends on all tokens before, in their order.

`model/states.py` runs them when completions share a prompt in training, `rollout/states.py` in sampling. Both rely on one fact: such a
layer keeps all of its state in transformers' cache (a `LinearAttentionLayer`), so that generation can continue from it.

A layer class is listed once tests/model/test_states.py compares it with itself, one sequence at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # torch is slow to load, and `--help` of a command reads this file.
    from torch import nn


STATE_LAYERS = frozenset(
    {
        # Gated DeltaNet: Qwen3.5 and 3.6, MiniCPM-V 4.6 (whose language model is Qwen3.5's), Qwen3-Next.
        "Qwen3_5GatedDeltaNet",
        "Qwen3_5MoeGatedDeltaNet",
        "Qwen3NextGatedDeltaNet",
        # Kimi Delta Attention.
        "Glm5NextTextLinearAttention",
        "KimiLinearDeltaAttention",
        # Mamba 2.
        "GraniteMoeHybridMambaLayer",
        "NemotronHMamba2Mixer",
        # Short convolutions.
        "Lfm2ShortConv",
        "Lfm2MoeShortConv",
    }
)
"""Names of classes. Their forward takes `hidden_states`, `attention_mask` ([B, W], for padding) and a cache."""

STATE_KINDS = frozenset({"linear_attention", "conv"})
"""Layer types (names in a text config's `layer_types`) of layers with a state and without attention."""


def state_layers(module: nn.Module) -> list[nn.Module]:
    """The layers with a state that a module holds, in their order."""
    return [layer for layer in module.modules() if type(layer).__name__ in STATE_LAYERS]


def why_no_states(model: Any) -> str | None:
    """Why a transformers model's layers with a state cannot branch; None if they can, or if it has none."""
    decoder = model.get_decoder()
    kinds = getattr(decoder.config, "layer_types", None) or ()
    layers = getattr(decoder, "layers", ())
    unknown = {
        kind for kind, layer in zip(kinds, layers, strict=False) if kind in STATE_KINDS and not state_layers(layer)
    }
    if unknown:
        return f"boresight does not know the state of its layers of type {', '.join(sorted(unknown))}"
    if getattr(model, "_is_stateful", False) and not state_layers(decoder):
        return "it has a recurrent state that boresight does not know"
    return None
