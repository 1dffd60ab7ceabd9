"""The bound: what a case would take if every image and every prompt were computed once and nothing else cost anything.

Each part is timed alone, on plain transformers modules at the case's own shapes, beside the runs that it bounds. A
completion's part is its own rows plus its attention to the prompt, which no layout can spare. In a layer with a state, the prompt's state
takes the place of the empty one, at no cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import Case
from measure import median_seconds
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache
from workload import TOKEN_SIZE, adapter

from boresight.modules import checkpoint_activations, named_cache

Parts = dict[str, float]
"""Seconds by part: vision, prompt, completions, head, other."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one group's parts (decode: of one step of the whole batch), forward alone and with backward."""

    vision: tuple[float, float]
    prompt: tuple[float, float]
    completions: tuple[float, float]
    head: tuple[float, float]
    decode: float = 0.0
    """One more token for every completion of the batch, head included."""
    preprocess: float = 0.0
    """One image through the processor."""
    turn_vision: tuple[float, float] = (0.0, 0.0)
    """The image of one completion's tool."""
    optimizer: float = 0.0
    """Clipping and one step of AdamW."""


def ideal_seconds(case: Case, costs: Costs) -> Parts:
    """What a run of the case would take, part by part."""
    parts: Parts = dict.fromkeys(("vision", "prompt", "completions", "head", "other"), 0.0)
    updating = case.kind != "sample"
    sampling = case.kind in ("sample", "step")
    looking = case.old + (case.beta != 0 and not case.precomputed) if updating else 0
    if updating:
        parts["vision"] += case.num_prompts * costs.vision[not case.frozen_tower]
        turns = costs.turn_vision[not case.frozen_tower] + looking * costs.turn_vision[0]
        parts["vision"] += case.num_rows * turns
        for name in ("prompt", "completions", "head"):
            parts[name] += case.num_prompts * (getattr(costs, name)[1] + looking * getattr(costs, name)[0])
    # A frozen tower's features serve every pass; a trained one runs in each, since its gradient or its weights differ.
    again = 0 if case.frozen_tower and updating else looking + sampling
    parts["vision"] += case.num_prompts * again * costs.vision[0]
    if sampling:
        parts["prompt"] += case.num_prompts * costs.prompt[0]
        parts["completions"] += (case.completion_tokens - 1) * costs.decode
    if case.kind == "step":
        parts["other"] += case.num_prompts * costs.preprocess + costs.optimizer
    return parts


def unit_costs(case: Case, folder: Path, repeats: int) -> Costs:
    """Time the parts of a case."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()
    base = model.base_model
    if (config := adapter(case)) is not None:
        get_peft_model(model, config)
    if case.frozen:
        base.visual.requires_grad_(False)
    if case.checkpointing:
        checkpoint_activations(model, {"use_reentrant": False})
    config = model.config.text_config
    edge = 2 * round(case.image_tokens**0.5)
    pixels, grid = _image(case.image_tokens)
    turn_pixels, turn_grid = _image(case.turn_image_tokens)
    vocab = config.vocab_size
    counted = torch.randint(0, vocab, (case.num_completions * case.completion_tokens,))
    prompt_ids = torch.randint(0, vocab, (1, case.prompt_tokens))
    own_ids = torch.randint(0, vocab, (case.num_completions, case.completion_tokens + case.turn_image_tokens))
    hidden = torch.randn(len(counted), config.hidden_size, requires_grad=True)

    def text(ids: Tensor) -> Tensor:
        return base.language_model(inputs_embeds=base.get_input_embeddings()(ids), use_cache=False).last_hidden_state

    def timed(function: Callable[[], Tensor], *, train: bool = True) -> tuple[float, float]:
        return _forward(function, repeats), _forward_backward(model, function, repeats) if train else 0.0

    updating = case.kind != "sample"
    to_prompt = timed(lambda: _attention_to_prompt(config, own_ids.numel(), case.prompt_tokens), train=updating)
    own = head = (0.0, 0.0)
    if updating:
        own = timed(lambda: text(own_ids))
        head = timed(lambda: _logp(model.get_output_embeddings(), hidden, counted))
    return Costs(
        vision=timed(lambda: base.visual(pixels, grid).pooler_output, train=updating and not case.frozen_tower),
        turn_vision=timed(
            lambda: base.visual(turn_pixels, turn_grid).pooler_output, train=updating and not case.frozen_tower
        )
        if case.turn_image_tokens
        else (0.0, 0.0),
        prompt=timed(lambda: text(prompt_ids), train=updating),
        completions=(own[0] + to_prompt[0], own[1] + to_prompt[1]),
        head=head,
        decode=_decode(model, case, repeats) if case.kind in ("sample", "step") else 0.0,
        preprocess=_preprocess(folder, edge * TOKEN_SIZE // 2, repeats) if case.kind == "step" else 0.0,
        optimizer=_optimizer(model, repeats) if case.kind == "step" else 0.0,
    )


def _image(tokens: int) -> tuple[Tensor, Tensor]:
    """Patches and grid of a square image of so many tokens."""
    edge = 2 * round(tokens**0.5)
    return torch.randn(edge**2, 2 * 3 * (TOKEN_SIZE // 2) ** 2), torch.tensor([[1, edge, edge]])


def _forward(function: Callable[[], Tensor], repeats: int) -> float:
    with torch.no_grad():
        return median_seconds(function, repeats)


def _forward_backward(model: nn.Module, function: Callable[[], Tensor], repeats: int) -> float:
    def both() -> None:
        output = function()
        output.backward(torch.ones_like(output))

    return median_seconds(both, repeats, before=lambda: model.zero_grad(set_to_none=True))


def _attention_to_prompt(config: Any, queries: int, keys: int) -> Tensor:
    """Attention of completion tokens to a prompt, in all layers that have attention. A state that is carried costs nothing more."""
    heads, size = (
        config.num_attention_heads,
        getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
    )
    query = torch.randn(1, heads, queries, size, requires_grad=True)
    key, value = (torch.randn(1, heads, keys, size, requires_grad=True) for _ in range(2))
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return torch.stack([scaled_dot_product_attention(query, key, value) for kind in kinds if kind == "full_attention"])


def _logp(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    return head(hidden).log_softmax(-1).gather(-1, targets[:, None])


@torch.no_grad()
def _decode(model: nn.Module, case: Case, repeats: int) -> float:
    """A step in the middle of sampling: each completion's own cache, and attention to the prompts kept once."""
    model.eval()
    config: Any = model.config
    ids = torch.randint(0, config.text_config.vocab_size, (case.num_rows, max(1, case.completion_tokens // 2)))
    state: dict[str, Any] = {}

    def fill() -> None:
        state["cache"] = DynamicCache(config=config.text_config)
        model(input_ids=ids, use_cache=True, logits_to_keep=1, **named_cache(model, state["cache"]))

    def step() -> None:
        model(input_ids=ids[:, :1], use_cache=True, **named_cache(model, state["cache"]))
        for _ in range(case.num_prompts):
            _attention_to_prompt(config.text_config, case.num_completions, case.prompt_tokens)

    return median_seconds(step, 2 * repeats, before=fill)


def _preprocess(folder: Path, edge: int, repeats: int) -> float:
    from PIL import Image

    processor: Any = AutoProcessor.from_pretrained(folder)
    image = Image.new("RGB", (edge, edge))
    return median_seconds(lambda: processor.image_processor(images=[image], return_tensors="pt"), repeats)


def _optimizer(model: nn.Module, repeats: int) -> float:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def step() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return median_seconds(step, repeats)
