"""The two ways to run groups through a model. They give the same numbers.

`SharedLayout` runs a prompt once with its completions as branches. `RowsLayout` repeats the prompt for every completion, as other
trainers do. Tests compare the first with the second, and models whose layers cannot branch use the second.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from boresight.errors import ConfigError, ModelError
from boresight.families import family_of, why_no_branches
from boresight.model import states
from boresight.model.attention import BranchTable, install
from boresight.model.packing import completion_mask, pack
from boresight.state_layers import why_no_states
from boresight.types import Group, LayoutName, Mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The result for groups of a forward pass of the model without its head."""

    hidden: Float[Tensor, "N H"]
    """The hidden state that predicts each counted token."""
    targets: Int[Tensor, "N"]
    """The id of each counted token."""
    mask: Mask
    """[B, T] true where a token counts; `hidden` and `targets` follow the order of its N true entries, row by row."""
    num_padded: int = 0
    """How many padding tokens were computed."""


class Layout(ABC):
    """One way to run groups through a model without its head."""

    name: ClassVar[LayoutName]

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.family = family_of(model.config.model_type)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @abstractmethod
    def prompts(self, groups: Sequence[Group]) -> list[Group]:
        """The groups, each repeated as often as its prompt runs, in the order in which image features are needed."""

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
        install(model)
        self.num_state_layers = states.install(model)

    def prompts(self, groups: Sequence[Group]) -> list[Group]:
        return list(groups)

    def __call__(self, groups: Sequence[Group], features: Mapping[str, Any]) -> Predictions:
        device = self.device
        row = pack(self.model.base_model, groups)
        table = BranchTable.of(row, image_blocks=self.family.image_blocks).to(device)
        hidden = self.model.base_model(
            input_ids=row.ids[None].to(device),
            position_ids=(row.positions[None] if row.positions.ndim == 1 else row.positions[:, None]).to(device),
            # transformers passes a 4-D mask on unchanged, and the table replaces it, so no L×L mask is built.
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            branches=table,
            **features,
        ).last_hidden_state[0]
        if not table.visits or table.state_visits != self.num_state_layers:
            raise ModelError(
                f"{type(self.model).__name__} does not pass keyword arguments to its layers: use layout='rows'."
            )
        return Predictions(hidden[row.predictors.to(device)], row.targets.to(device), row.mask.to(device))


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

    def prompts(self, groups: Sequence[Group]) -> list[Group]:
        return [group for group in groups for _ in group.completions]

    def __call__(self, groups: Sequence[Group], features: Mapping[str, Any]) -> Predictions:
        device = self.device
        ids, types, predictors, targets = [], [], [], []
        for group in groups:
            for completion in group.completions:
                own = completion.token_types
                ids.append(torch.cat([group.prompt.ids, completion.ids]))
                types.append(
                    torch.cat([group.prompt.token_types, torch.zeros_like(completion.ids) if own is None else own])
                )
                predictors.append(torch.arange(len(completion.ids))[completion.mask] + len(group.prompt.ids) - 1)
                targets.append(completion.ids[completion.mask])
        mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in ids], True)
        hidden = self.model.base_model(
            input_ids=pad_sequence(ids, True, self.pad_id).to(device),
            attention_mask=mask.long().to(device),
            use_cache=False,
            **self._further_inputs(groups, pad_sequence(types, True)),
            **features,
        ).last_hidden_state
        rows = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([len(target) for target in targets]))
        return Predictions(
            hidden[rows.to(device), torch.cat(predictors).to(device)],
            torch.cat(targets).to(device),
            completion_mask(groups).to(device),
            num_padded=int((~mask).sum()),
        )

    def _further_inputs(self, groups: Sequence[Group], types: Int[Tensor, "B L"]) -> dict[str, Tensor]:
        """The model's inputs besides ids and features. M-RoPE models compute positions from token types and image grids."""
        inputs = dict.fromkeys(self.family.token_types, types)
        for name in self.family.inputs_beside_features:
            if found := [group.prompt.vision[name] for group in self.prompts(groups) if name in group.prompt.vision]:
                inputs[name] = torch.cat(found)
        return {name: tensor.to(self.device) for name, tensor in inputs.items() if name in self._accepts}


def why_not_shared(model: PreTrainedModel) -> str | None:
    """Why a model cannot use the shared layout, or None if it can."""
    config = model.get_decoder().config
    if (reason := why_no_branches(config)) is not None:
        return reason
    accepts = inspect.signature(model.base_model.forward).parameters
    if config._attn_implementation == "eager":
        return "it was loaded with eager attention, which each model class defines itself; 'sdpa' can share"
    if "mm_encoder_outputs" not in accepts:
        return "its forward takes no image features (mm_encoder_outputs)"
    if (reason := why_no_states(model)) is not None:
        return reason
    if getattr(config, "use_bidirectional_attention", None) or (
        "token_type_ids" in accepts and not family_of(model.config.model_type).image_blocks
    ):
        return "some of its tokens attend to later tokens, in a pattern that boresight does not know"
    return None


def choose_layout(model: PreTrainedModel, wanted: LayoutName | str, *, pad_id: int) -> Layout:
    """The layout that the user chose. `"auto"` gives the shared one if tests compare the model's family with plain transformers.

    Raises:
        ConfigError: the layout is unknown, or the model cannot share.
    """
    name = type(model).__name__
    if wanted not in ("auto", "shared", "rows"):
        raise ConfigError(f"layout={wanted!r} is not one of 'auto', 'shared', 'rows'.")
    if wanted == "rows":
        return RowsLayout(model, pad_id=pad_id)
    reason = why_not_shared(model)
    if wanted == "shared" and reason is not None:
        raise ConfigError(f"layout='shared' cannot serve {name}: {reason}. Use layout='rows'.")
    if wanted == "auto" and reason is None and not family_of(model.config.model_type).shares:
        reason = (
            "no test covers its family's shared layout; `boresight doctor --probe` checks whether the model can share, and "
            "layout='shared' enables it"
        )
    if reason is None:
        return SharedLayout(model)
    logger.warning("%s runs one row per completion: %s.", name, reason)
    return RowsLayout(model, pad_id=pad_id)
