"""The two fast ways to run groups through a model. They give the same numbers as its own forward (`plain`).

`SharedLayout` runs a prompt once with its completions as branches. `RowsLayout` repeats the prompt for every completion, as other
trainers do, but not its images. `choice` picks one for a model.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from boresight.errors import ModelError
from boresight.families import Blocks, bidirectional_blocks, family_of, why_no_branches
from boresight.model import states
from boresight.model.attention import BranchTable, install
from boresight.model.head import Head, LogitSource
from boresight.model.packing import completion_mask, pack
from boresight.model.routers import row_counts, shared_counts
from boresight.own_forward import completion_tokens, continued_token_inputs, final_states, is_token_input
from boresight.state_layers import why_no_states
from boresight.types import Completion, Group, HasImages, LayoutName, Mask


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The result of a forward pass for groups."""

    hidden: Float[Tensor, "N H"]
    """What predicts each counted token: a hidden state, or logits, for the layout's `head`."""
    targets: Int[Tensor, "N"]
    """The id of each counted token."""
    mask: Mask
    """[B, T] true where a token counts; `hidden` and `targets` follow the order of its N true entries, row by row."""
    num_padded: int = 0
    """How many padding tokens were computed."""

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Those of several passes, groups in order."""
        if len(parts) == 1:
            return parts[0]
        masks = [row for part in parts for row in part.mask]
        return cls(
            torch.cat([part.hidden for part in parts]),
            torch.cat([part.targets for part in parts]),
            pad_sequence(masks, True),
            sum(part.num_padded for part in parts),
        )


class Layout(ABC):
    """One way to run groups through a model.

    Attributes:
        name: its name among the options.
        takes_features: whether it takes ready image features; otherwise the model encodes images itself.
        head: from `Predictions.hidden` to logits.
    """

    name: ClassVar[LayoutName]
    takes_features: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel, head: LogitSource | None = None) -> None:
        self.model = model
        self.head: LogitSource = Head.of(model) if head is None else head
        self.family = family_of(model.config.model_type)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def prompts(self, groups: Sequence[Group]) -> list[Group]:
        """The groups, each repeated as often as its prompt runs: for every completion, unless they share it."""
        return [group for group in groups for _ in group.completions]

    def image_sets(self, groups: Sequence[Group]) -> list[HasImages]:
        """The images of prompts and completions, in the order in which their features are needed."""
        return [
            each
            for group in groups
            for completion in group.completions
            for each in (*group.prompt.image_sets, *completion.image_sets)
        ]

    @abstractmethod
    def token_counts(self, groups: Sequence[Group]) -> Tensor:
        """How often each token that a pass runs counts in a loss over all tokens (`routers`)."""

    @abstractmethod
    def __call__(self, groups: Sequence[Group], features: Mapping[str, Any]) -> Predictions:
        """Run one forward.

        Args:
            features: keyword arguments of the forward that hold the image features of `prompts(groups)`; empty without images.
        """


class SharedLayout(Layout):
    """All groups in one row, each prompt once, completions as branches of it (see `packing` and `attention`)."""

    name: ClassVar[LayoutName] = "shared"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._accepts = set(inspect.signature(model.base_model.forward).parameters)
        self._blocks: Blocks | None = bidirectional_blocks(self.family, model.get_decoder().config)
        install(model)
        self.num_state_layers = states.install(model)

    def prompts(self, groups: Sequence[Group]) -> list[Group]:
        return list(groups)

    def image_sets(self, groups: Sequence[Group]) -> list[HasImages]:
        return [each for group in groups for part in (group.prompt, *group.completions) for each in part.image_sets]

    def token_counts(self, groups: Sequence[Group]) -> Tensor:
        return shared_counts(groups)

    def __call__(self, groups: Sequence[Group], features: Mapping[str, Any]) -> Predictions:
        device = self.device
        row = pack(self.model.base_model, groups)
        table = BranchTable.of(row, blocks=self._blocks).to(device)
        hidden = final_states(
            self.model,
            input_ids=row.ids[None].to(device),
            position_ids=(row.positions[None] if row.positions.ndim == 1 else row.positions[:, None]).to(device),
            # transformers passes a 4-D mask on unchanged, and the table replaces it, so no L×L mask is built.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            branches=table,
            **self._token_inputs(groups),
            **features,
        )[0]
        if not table.visits or table.state_visits != self.num_state_layers:
            raise ModelError(
                f"{type(self.model).__name__} does not pass keyword arguments to its layers: use layout='rows'."
            )
        return Predictions(hidden[row.predictors.to(device)], row.targets.to(device), row.mask.to(device))

    def _token_inputs(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """Token inputs of the row, other than types of tokens: those only decide about positions and masks, which are given."""
        names = {
            name for group in groups for name in group.prompt.token_inputs if name not in self.family.token_types
        } & self._accepts
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        for group in groups if names else ():
            prompt = {name: group.prompt.token_inputs[name][None] for name in names}
            length = len(group.prompt.ids)
            for name, values in prompt.items():
                rows[name].append(values[0])
            for completion in group.completions:
                own = completion.token_inputs or {
                    name: values[0, length:]
                    for name, values in continued_token_inputs(self.model, prompt, len(completion.ids)).items()
                }
                for name in names:
                    rows[name].append(own[name])
        return {name: torch.cat(values)[None].to(self.device) for name, values in rows.items()}


class RowsLayout(Layout):
    """One padded row for each completion, its prompt before it.

    Args:
        pad_id: the padding id; no token attends to it.
    """

    name: ClassVar[LayoutName] = "rows"

    def __init__(self, model: PreTrainedModel, *, pad_id: int) -> None:
        super().__init__(model)
        self.pad_id = pad_id
        self._accepts = set(inspect.signature(model.base_model.forward).parameters)

    def token_counts(self, groups: Sequence[Group]) -> Tensor:
        return row_counts(groups, padded=True)

    def __call__(self, groups: Sequence[Group], features: Mapping[str, Any]) -> Predictions:
        device = self.device
        ids, rows_inputs, predictors, targets = [], [], [], []
        for group in groups:
            for completion in group.completions:
                ids.append(torch.cat([group.prompt.ids, completion.ids]))
                rows_inputs.append(self._token_inputs(group, completion))
                predictors.append(torch.arange(len(completion.ids))[completion.mask] + len(group.prompt.ids) - 1)
                targets.append(completion.ids[completion.mask])
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in ids], True)
        hidden = final_states(
            self.model,
            input_ids=pad_sequence(ids, True, self.pad_id).to(device),
            attention_mask=mask.long().to(device),
            use_cache=False,
            **self._joined(rows_inputs, ids),
            **features,
        )
        rows = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([len(target) for target in targets]))
        return Predictions(
            hidden[rows.to(device), torch.cat(predictors).to(device)],
            torch.cat(targets).to(device),
            completion_mask(groups).to(device),
            num_padded=int((~mask).sum()),
        )

    def _token_inputs(self, group: Group, completion: Completion) -> dict[str, Tensor]:
        """Token inputs [L, …] of one row that the model takes."""
        tensors, further = completion_tokens(self.model, group.prompt, completion)
        length = tensors["input_ids"].shape[1]
        tokens = {
            name: tensor
            for name, tensor in tensors.items()
            if name in self._accepts - {"input_ids", "attention_mask"} and is_token_input(tensor, length)
        }
        return {name: values[0] for name, values in continued_token_inputs(self.model, tokens, len(further)).items()}

    def _joined(self, rows: Sequence[Mapping[str, Tensor]], ids: Sequence[Tensor]) -> dict[str, Tensor]:
        """The token inputs of all rows, padded with zeros, which also stand for an input that a row does not have."""
        joined = {}
        for name in sorted({name for row in rows for name in row}):
            like = next(row[name] for row in rows if name in row)
            values = [
                row.get(name, like.new_zeros(len(own), *like.shape[1:])) for row, own in zip(rows, ids, strict=True)
            ]
            joined[name] = pad_sequence(values, True).to(self.device)
        return joined


def takes_features(model: PreTrainedModel) -> bool:
    """Whether the model's forward without its head takes ready image features instead of pixels."""
    base = model.base_model
    parameters = inspect.signature(base.forward).parameters
    pixels = parameters.get("pixel_values")
    needs_pixels = pixels is not None and pixels.default is inspect.Parameter.empty
    return "mm_encoder_outputs" in parameters and not needs_pixels and hasattr(base, "get_image_features")


def why_not_shared(model: PreTrainedModel) -> str | None:
    """What in a model's structure keeps it from the shared layout; None if nothing does, and values must decide."""
    config = model.get_decoder().config
    if (reason := why_no_branches(config)) is not None:
        return reason
    if config._attn_implementation == "eager":
        return "it was loaded with eager attention, which each model class defines itself; 'sdpa' can share"
    if not takes_features(model):
        return "its forward takes no image features (mm_encoder_outputs) instead of pixels"
    if (reason := why_no_states(model)) is not None:
        return reason
    return None
