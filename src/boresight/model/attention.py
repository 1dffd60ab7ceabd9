"""Branches that attend to their prompt and to themselves, without an L×L mask and without editing a model class.

transformers looks attention functions up by name. `install` gives a text model the name `branch_<its own>`: with a `BranchTable`
among the forward's keyword arguments the function below runs, without one the model's own does. So one model serves shared rows,
ordinary rows and generation alike, and gradient checkpointing, which carries keyword arguments, recomputes the right thing.

Attention of a packed row is two calls, whatever the number of groups: all prompts with themselves, and all branches with their
prompt and themselves. On a CPU, full attention goes in flash pieces instead (`model/merged_attention.py`), which is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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
from boresight.model.merged_attention import can_merge, merged_attention
from boresight.model.packing import GroupSpan, PackedRow

PREFIX = "branch_"

PromptMask = Bool[Tensor, "_ 1 P P"]
"""[G or 1, 1, P, P]"""
BranchMask = Bool[Tensor, "B 1 C _"]
"""[B, 1, C, P + C]"""
Masks = tuple[PromptMask | None, BranchMask]


@dataclass(slots=True, eq=False)
class BranchTable:
    """Which places of a row make up which prompt and which branch, as rectangles padded on the right.

    A padded place of a prompt comes after all of its queries, so the causal mask hides it; of a branch, `branch_mask` hides it.
    A lone completion (K = 1) shares its prompt with nobody: both are one causal sequence here, and count as a prompt.
    """

    prompts: Int[Tensor, "G P"]
    """Places in the row; padding repeats place 0."""
    branches: Int[Tensor, "B C"]
    """Places in the row, of groups of two and more; padding repeats place 0."""
    group: Int[Tensor, "B"]
    """The group of each branch."""
    prompt_lengths: Int[Tensor, "G"]
    spans: tuple[GroupSpan, ...]
    """The row's groups."""
    restore: Int[Tensor, "L"]
    """Where each place of the row is found among the padded prompts followed by the padded branches."""
    blocks: Int[Tensor, "G P"] | None = None
    """Where an image's tokens see one another both ways: the number of the image each place belongs to, else −1."""
    visits: int = 0
    """Layers that used the table: a model that drops keyword arguments on the way would leave it at 0."""
    _masks: dict[int | None, Masks] = field(default_factory=dict)

    @classmethod
    def of(cls, row: PackedRow, *, image_blocks: bool = False) -> BranchTable:
        """The table of a packed row; `image_blocks` where an image's tokens attend both ways."""
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
        blocks = _image_blocks(row.token_types.cpu(), prompts) if image_blocks else None
        lengths = torch.tensor([len(places) for places in prompts])
        places = torch.tensor(group, dtype=torch.long)
        return cls(padded_prompts, padded_branches, places, lengths, row.spans, restore, blocks)

    def to(self, device: torch.device) -> BranchTable:
        """The same table on another device."""
        moved = {
            name: value.to(device)
            for name in ("prompts", "branches", "group", "prompt_lengths", "restore", "blocks")
            if (value := getattr(self, name)) is not None
        }
        return BranchTable(**moved, spans=self.spans)

    def masks(self, window: int | None) -> Masks:
        """Masks of prompts, None where plain causal, and of branches: true where a query sees a key.

        Built once per kind of layer.

        Args:
            window: of a sliding layer, how many tokens back a query sees, itself included.
        """
        if window not in self._masks:
            self._masks[window] = (self._prompt_mask(window), self._branch_mask(window))
        return self._masks[window]

    def is_plain(self, window: int | None) -> bool:
        """Whether every query sees all that comes before it, and nothing else."""
        longest = max(span.prompt + max(span.branches, default=0) for span in self.spans)
        return self.blocks is None and (window is None or longest <= window)

    def _prompt_mask(self, window: int | None) -> PromptMask | None:
        width = self.prompts.shape[1]
        if self.blocks is None and (window is None or width <= window):
            return None
        place = torch.arange(width, device=self.prompts.device)
        distance = place[:, None] - place
        mask = distance >= 0
        if self.blocks is not None:
            same = (self.blocks[:, :, None] == self.blocks[:, None]) & (self.blocks[:, None] >= 0)
            mask = mask | same
        if window is not None:
            # Exactly as transformers draws it: the window bounds what lies behind, an image's block goes on ahead.
            mask = mask & (distance < window)
        return (mask if mask.ndim == 3 else mask[None])[:, None]

    def _branch_mask(self, window: int | None) -> BranchMask:
        device = self.prompts.device
        key = torch.arange(self.prompts.shape[1], device=device)
        own = torch.arange(self.branches.shape[1], device=device)
        lengths = self.prompt_lengths[self.group, None, None]
        prefix = (key < lengths).expand(-1, len(own), -1)
        causal = (own[:, None] >= own).expand(len(self.group), -1, -1)
        if window is not None:
            prefix = prefix & (lengths + own[:, None] - key < window)
            causal = causal & (own[:, None] - own < window)
        return torch.cat([prefix, causal], -1)[:, None]


def _image_blocks(token_types: Int[Tensor, "L"], prompts: list[Tensor]) -> Int[Tensor, "G P"]:
    """The number of each image's run of placeholders, −1 elsewhere and in padding."""
    blocks = []
    for places in prompts:
        image = token_types[places] == 1
        starts = image & ~torch.cat([torch.zeros(1, dtype=torch.bool), image[:-1]])
        blocks.append(torch.where(image, starts.cumsum(0) - 1, -1))
    return pad_sequence(blocks, True, -1)


def packed_attention(
    query: Float[Tensor, "1 heads L D"],
    key: Float[Tensor, "1 kv L D"],
    value: Float[Tensor, "1 kv L Dv"],
    table: BranchTable,
    scale: float,
    window: int | None,
) -> Float[Tensor, "1 L heads Dv"]:
    """Attention of one packed row, rotary positions applied."""
    if table.is_plain(window) and can_merge(query):
        repeats = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
        return merged_attention(query, key, value, table.spans, scale).transpose(1, 2)
    return padded_attention(query, key, value, table, scale, window)


def padded_attention(
    query: Float[Tensor, "1 heads L D"],
    key: Float[Tensor, "1 kv L D"],
    value: Float[Tensor, "1 kv L Dv"],
    table: BranchTable,
    scale: float,
    window: int | None,
) -> Float[Tensor, "1 L heads Dv"]:
    """The same in two SDPA calls on padded rectangles, for any device, window and pattern of images."""
    repeats = query.shape[1] // key.shape[1]
    prompt_mask, branch_mask = table.masks(window)
    # [L, heads, D], so that a table of places picks rows.
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
    """The attention function that transformers calls: ours when a table came along, the model's own otherwise."""

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
                f"{type(module).__name__} caps its attention scores or gives them a sink: use layout='rows'."
            )
        branches.visits += 1
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return packed_attention(query, key, value, branches, scale, sliding_window), None

    return attend


def install(model: PreTrainedModel) -> None:
    """Send the text model's attention, and only that, through this file. Calling it twice changes nothing.

    Raises:
        ModelError: the model was loaded with eager attention, which each model class defines for itself.
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
