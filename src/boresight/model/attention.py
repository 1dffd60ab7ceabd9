"""Branches that attend to their prompt and to themselves, without an L×L mask and without editing a model class.

transformers looks up attention functions by name. `install` sets a text model's attention to `branch_<its own>`. If the forward's
keyword arguments contain a `BranchTable`, the function below runs; otherwise the model's own does. So one model serves shared rows,
ordinary rows and generation, and gradient checkpointing works, because it passes keyword arguments on.

Attention over a packed row runs in flash kernels (`model/merged_attention.py`). Where none fits (the tokens of an image attend to one
another, float32 on CUDA, another device) it takes two SDPA calls, whatever the number of groups: all prompts with themselves, and all
branches with their prompt and themselves. `packed_attention` chooses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from boresight.errors import ModelError
from boresight.families import Blocks
from boresight.model.flash_kernels import Kernel, flash_kernel
from boresight.model.merged_attention import Pieces, merged_attention
from boresight.model.packing import GroupSpan, PackedRow
from boresight.model.walk import Walk

logger = logging.getLogger(__name__)

PREFIX = "branch_"

PromptMask = Bool[Tensor, "_ 1 P P"]
"""[G or 1, 1, P, P]"""
BranchMask = Bool[Tensor, "B 1 C _"]
"""[B, 1, C, P + C]"""
Masks = tuple[PromptMask | None, BranchMask]


@dataclass(slots=True, eq=False)
class BranchTable:
    """The indices in a packed row of every prompt and branch, as rectangles padded on the right.

    A prompt's padding comes after all of its queries, so the causal mask hides it. `branch_mask` hides a branch's padding.
    A single completion (K = 1) shares its prompt with no other: the two are one causal sequence, and are treated as a prompt.
    """

    prompts: Int[Tensor, "G P"]
    """Indices in the row; padding repeats index 0."""
    branches: Int[Tensor, "B C"]
    """Indices in the row, for groups of two or more; padding repeats index 0."""
    group: Int[Tensor, "B"]
    """The group of each branch."""
    prompt_lengths: Int[Tensor, "G"]
    spans: tuple[GroupSpan, ...]
    """The row's groups."""
    restore: Int[Tensor, "L"]
    """The index of each token of the row among the padded prompts followed by the padded branches."""
    blocks: Int[Tensor, "G P"] | None = None
    """For models in which some tokens attend bidirectionally: the number of the block that each token belongs to, or −1."""
    branch_blocks: Int[Tensor, "B C"] | None = None
    """The same for tokens of branches: images that an environment put into a completion."""
    blocks_need_window: bool = False
    """Whether blocks exist in sliding layers only (Gemma 4)."""
    visits: int = 0
    """How many layers used the table. It stays 0 if the model drops keyword arguments before its attention."""
    state_visits: int = 0
    """How many layers with a state used it (see `states.run_packed`)."""
    _masks: dict[int | None, Masks] = field(default_factory=dict)
    _pieces: dict[int | None, Pieces] = field(default_factory=dict)
    _walk: Walk | None = None

    @classmethod
    def of(cls, row: PackedRow, *, blocks: Blocks | None = None) -> BranchTable:
        """The table of a packed row.

        Args:
            blocks: which tokens attend bidirectionally.
        """
        prompts, branches, group = [], [], []
        for number, span in enumerate(row.spans):
            lone = sum(span.branches) if len(span.branches) == 1 else 0
            prompts.append(torch.arange(span.start, span.start + span.prompt + lone))
            place = span.start + span.prompt
            for length in () if lone else span.branches:
                branches.append(torch.arange(place, place + length))
                group.append(number)
                place += length
        padded_prompts = pad_sequence(prompts, True)
        padded_branches = pad_sequence(branches, True) if branches else torch.empty(0, 0, dtype=torch.long)
        restore = torch.empty(len(row.ids), dtype=torch.long)
        offset = padded_prompts.numel()
        for number, places in enumerate(prompts):
            restore[places] = number * padded_prompts.shape[1] + torch.arange(len(places))
        for number, places in enumerate(branches):
            restore[places] = offset + number * padded_branches.shape[1] + torch.arange(len(places))
        attending = within = None
        if blocks in ("image", "image in windows"):
            attending = _image_blocks(row.token_types.cpu(), prompts)
            within = _image_blocks(row.token_types.cpu(), branches) if branches else None
        elif blocks == "prompt":
            attending = _prompt_blocks(row.spans, prompts)
        lengths = torch.tensor([len(places) for places in prompts])
        places = torch.tensor(group, dtype=torch.long)
        in_windows = blocks == "image in windows"
        return cls(padded_prompts, padded_branches, places, lengths, row.spans, restore, attending, within, in_windows)

    def to(self, device: torch.device) -> BranchTable:
        """The same table on another device."""
        moved = {
            name: value.to(device)
            for name in ("prompts", "branches", "group", "prompt_lengths", "restore", "blocks", "branch_blocks")
            if (value := getattr(self, name)) is not None
        }
        return BranchTable(**moved, spans=self.spans, blocks_need_window=self.blocks_need_window)

    def blocks_at(self, window: int | None) -> Int[Tensor, "G P"] | None:
        """The blocks of a layer with this window."""
        return None if self.blocks_need_window and window is None else self.blocks

    def _branch_blocks_at(self, window: int | None) -> Int[Tensor, "B C"] | None:
        return None if self.blocks_need_window and window is None else self.branch_blocks

    def masks(self, window: int | None) -> Masks:
        """The masks of prompts (None if plain causal) and of branches: true where a query attends to a key.

        Each window's masks are built once.

        Args:
            window: how many tokens back a query of a sliding layer attends, itself included; None for full attention.
        """
        if window not in self._masks:
            self._masks[window] = (self._prompt_mask(window), self._branch_mask(window))
        return self._masks[window]

    @property
    def walk(self) -> Walk:
        """The order in which layers with a state run the row. It is built once."""
        if self._walk is None:
            self._walk = Walk.of(self.spans).to(self.prompts.device)
        return self._walk

    def pieces(self, window: int | None) -> Pieces:
        """The calls of merged attention. Each window's are built once; `window` as for `masks`."""
        if window not in self._pieces:
            self._pieces[window] = Pieces.of(self.spans, window, self.prompts.device)
        return self._pieces[window]

    def _prompt_mask(self, window: int | None) -> PromptMask | None:
        width, blocks = self.prompts.shape[1], self.blocks_at(window)
        if blocks is None and (window is None or width <= window):
            return None
        place = torch.arange(width, device=self.prompts.device)
        distance = place[:, None] - place
        mask = distance >= 0
        if blocks is not None:
            mask = mask | _same_block(blocks)
        if window is not None:
            # As in transformers: the window limits attention to earlier tokens, but not to later tokens of an image's block.
            mask = mask & (distance < window)
        return (mask if mask.ndim == 3 else mask[None])[:, None]

    def _branch_mask(self, window: int | None) -> BranchMask:
        device = self.prompts.device
        key = torch.arange(self.prompts.shape[1], device=device)
        own = torch.arange(self.branches.shape[1], device=device)
        lengths = self.prompt_lengths[self.group, None, None]
        prefix = (key < lengths).expand(-1, len(own), -1)
        causal = (own[:, None] >= own).expand(len(self.group), -1, -1)
        if (blocks := self._branch_blocks_at(window)) is not None:
            causal = causal | _same_block(blocks)
        if window is not None:
            prefix = prefix & (lengths + own[:, None] - key < window)
            causal = causal & (own[:, None] - own < window)
        return torch.cat([prefix, causal], -1)[:, None]


def _same_block(blocks: Int[Tensor, "B P"]) -> Bool[Tensor, "B P P"]:
    """Whether two tokens belong to the same block."""
    return (blocks[:, :, None] == blocks[:, None]) & (blocks[:, None] >= 0)


def _image_blocks(token_types: Int[Tensor, "L"], sequences: list[Tensor]) -> Int[Tensor, "B P"]:
    """The number of the image that each placeholder belongs to; −1 for other tokens and padding."""
    blocks = []
    for places in sequences:
        image = token_types[places] == 1
        starts = image & ~torch.cat([torch.zeros(1, dtype=torch.bool), image[:-1]])
        blocks.append(torch.where(image, starts.cumsum(0) - 1, -1))
    return pad_sequence(blocks, True, -1)


def _prompt_blocks(spans: Sequence[GroupSpan], prompts: list[Tensor]) -> Int[Tensor, "G P"]:
    """0 for the tokens of a prompt; −1 for those of a lone completion and padding."""
    blocks = [
        torch.where(torch.arange(len(places)) < span.prompt, 0, -1) for span, places in zip(spans, prompts, strict=True)
    ]
    return pad_sequence(blocks, True, -1)


def packed_attention(
    query: Float[Tensor, "1 heads L D"],
    key: Float[Tensor, "1 kv L D"],
    value: Float[Tensor, "1 kv L Dv"],
    table: BranchTable,
    scale: float,
    window: int | None,
) -> Float[Tensor, "1 L heads Dv"]:
    """Attention over one packed row, after rotary embeddings."""
    query, key, value = (_autocast(states) for states in (query, key, value))
    kernel = _kernel(query, value, table, window)
    if isinstance(kernel, str):
        _log_fallback(kernel, query.device.type)
        return padded_attention(query, key, value, table, scale, window)
    return merged_attention(query, key, value, table.pieces(window), kernel, scale)


def _kernel(query: Tensor, value: Tensor, table: BranchTable, window: int | None) -> Kernel | str:
    """The flash kernel for these states, or why two SDPA calls run instead."""
    if table.blocks_at(window) is not None:
        return "the tokens of an image attend to one another"
    return flash_kernel(query, value)


@cache
def _log_fallback(reason: str, device: str) -> None:
    """Once for each reason. On a CPU the difference is small."""
    level = logging.INFO if device == "cpu" else logging.WARNING
    logger.log(
        level, "Attention over a prompt and its completions takes two masked SDPA calls on %s: %s.", device, reason
    )


def _autocast(states: Tensor) -> Tensor:
    """As autocast does for SDPA: norms of queries and keys may have left them in float32 beside values in bfloat16."""
    kind = states.device.type
    wanted = torch.is_autocast_enabled(kind) and states.dtype == torch.float32
    return states.to(torch.get_autocast_dtype(kind)) if wanted else states


def padded_attention(
    query: Float[Tensor, "1 heads L D"],
    key: Float[Tensor, "1 kv L D"],
    value: Float[Tensor, "1 kv L Dv"],
    table: BranchTable,
    scale: float,
    window: int | None,
) -> Float[Tensor, "1 L heads Dv"]:
    """As `packed_attention`, in two SDPA calls on padded rectangles, for any device, window and image blocks."""
    repeats = query.shape[1] // key.shape[1]
    prompt_mask, branch_mask = table.masks(window)
    # [L, heads, D], so that indices select tokens.
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    prompt_query, prompt_key, prompt_value = (states[table.prompts].transpose(1, 2) for states in (query, key, value))
    own_query, own_key, own_value = (states[table.branches].transpose(1, 2) for states in (query, key, value))
    prompts = scaled_dot_product_attention(
        prompt_query,
        repeat_kv(prompt_key, repeats),
        repeat_kv(prompt_value, repeats),
        prompt_mask,
        is_causal=prompt_mask is None,
        scale=scale,
    )
    if not len(table.group):
        return prompts.transpose(1, 2).flatten(0, 1)[table.restore][None]
    branches = scaled_dot_product_attention(
        own_query,
        repeat_kv(torch.cat([prompt_key[table.group], own_key], 2), repeats),
        repeat_kv(torch.cat([prompt_value[table.group], own_value], 2), repeats),
        branch_mask,
        scale=scale,
    )
    padded = torch.cat([prompts.transpose(1, 2).flatten(0, 1), branches.transpose(1, 2).flatten(0, 1)])
    return padded[table.restore][None]


def _dispatch(own: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function that transformers calls: ours if it receives a table, the model's own otherwise."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        branches: BranchTable | None = None,
        **options: object,
    ) -> tuple[Tensor, Tensor | None]:
        if branches is None:
            options["sliding_window"] = sliding_window
            return own(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
        if dropout:
            raise ModelError("Attention dropout would differ between a shared prompt and its repetitions: set it to 0.")
        if options.get("softcap") is not None or options.get("s_aux") is not None:
            raise ModelError(
                f"{type(module).__name__} caps its attention scores or has attention sinks: use layout='rows'."
            )
        branches.visits += 1
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return packed_attention(query, key, value, branches, scale, sliding_window), None

    return attend


def install(model: PreTrainedModel) -> None:
    """Route the text model's attention, and no other, through this file. A second call changes nothing.

    Raises:
        ModelError: the model was loaded with eager attention, which each model class defines itself.
    """
    config = model.get_decoder().config
    own: str = config._attn_implementation or "eager"
    if own.startswith(PREFIX):
        return
    if own == "eager":
        raise ModelError(
            f"{type(model).__name__} was loaded with eager attention; load it with attn_implementation='sdpa', or use layout='rows'."
        )
    name = PREFIX + own
    AttentionInterface.register(name, _dispatch(ALL_ATTENTION_FUNCTIONS[own]))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    config._attn_implementation = name
