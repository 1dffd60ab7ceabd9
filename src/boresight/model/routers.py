"""The load-balancing loss of mixture-of-experts models, over a forward pass of groups.

It is the model class's own function. Under the shared layout a prompt's tokens pass their routers once; each counts as often as there are
completions, as if every completion had a row of its own, so that the loss and its gradients do not depend on the layout.

Reference: Fedus et al., Switch Transformers (arXiv 2101.03961), equations 4–6.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from boresight.errors import ModelError
from boresight.types import Group

FUNCTION, RECORD = "load_balancing_loss_func", "router_logits"
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "moe_k")
"""What configurations call the number of experts, and of those that a token uses."""


class Routers:
    """The routers of a model's layers; `of` finds them.

    Args:
        modules: those whose output holds router logits, and where in it.
        loss: the model class's own function.
        num_experts: of a layer.
        top_k: how many of them a token uses.
        weight: of the loss.
    """

    def __init__(
        self,
        modules: Sequence[tuple[nn.Module, int]],
        loss: Callable[..., Tensor],
        num_experts: int,
        top_k: int,
        weight: float,
    ) -> None:
        self._modules, self._loss, self._num_experts, self._top_k = modules, loss, num_experts, top_k
        self.weight = weight

    @classmethod
    def of(cls, model: PreTrainedModel, weight: float | None) -> Routers | None:
        """A model's routers, or None where no load-balancing loss is wanted.

        Args:
            weight: of the loss; None: the model's own. As TRL's `router_aux_loss_coef`.

        Raises:
            ModelError: a weight is given, and the model has no such loss.
        """
        config: Any = model.get_decoder().config
        wanted = getattr(config, "router_aux_loss_coef", None) or 0.0 if weight is None else weight
        if not wanted:
            return None
        loss = getattr(sys.modules[type(model).__module__], FUNCTION, None)
        num_experts, top_k = (
            next((found for name in names if (found := getattr(config, name, None))), None)
            for names in (EXPERTS, TOP_K)
        )
        modules = _routers(model) if hasattr(config, "output_router_logits") else []
        if loss is None or not num_experts or not top_k or not modules:
            if weight is None:
                return None
            raise ModelError(
                f"router_aux_loss_coef={weight:g}, but {type(model).__name__} has no load-balancing loss of experts: leave it out."
            )
        return cls(modules, loss, num_experts, top_k, wanted)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Collects [tokens, experts] of each router, in the order of the layers, while the context is open."""
        found: list[Tensor] = []

        def record(index: int) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, arguments, output: found.append(
                output if isinstance(output, Tensor) else output[index]
            )

        hooks = [module.register_forward_hook(record(index)) for module, index in self._modules]
        try:
            yield found
        finally:
            # Checkpointing runs the modules once more in the backward pass, when nothing is to be collected.
            for hook in hooks:
                hook.remove()

    def loss(self, logits: Sequence[Tensor], counts: Tensor) -> Tensor:
        """The load-balancing loss: a scalar, 1·top_k for routers that use all experts alike.

        Args:
            logits: as `recorded` collects them.
            counts: [tokens] how often each token counts; 0 for padding.
        """
        num_layers = len(self._modules)
        # A layout may take several passes; each fills the list with one entry for each layer.
        flat = tuple(
            torch.cat([each.reshape(-1, each.shape[-1]) for each in logits[layer::num_layers]])
            for layer in range(num_layers)
        )
        counts = counts.reshape(1, -1).to(flat[0].device, torch.float32)
        return self._loss(flat, self._num_experts, self._top_k, counts)


def row_counts(groups: Sequence[Group], *, padded: bool) -> Tensor:
    """[B·T] how often each token of one row for each completion counts: once, and padding at the end of a row not at all."""
    lengths = [len(group.prompt.ids) + len(each.ids) for group in groups for each in group.completions]
    rows = [torch.ones(length) for length in lengths]
    return pad_sequence(rows, batch_first=True).flatten() if padded else torch.cat(rows)


def shared_counts(groups: Sequence[Group]) -> Tensor:
    """[L] how often each token of the packed row counts: of a prompt once for each completion."""
    parts = []
    for group in groups:
        parts.append(torch.full((len(group.prompt.ids),), float(len(group))))
        parts.append(torch.ones(sum(len(completion.ids) for completion in group.completions)))
    return torch.cat(parts)


def _routers(model: PreTrainedModel) -> list[tuple[nn.Module, int]]:
    """The modules whose output holds router logits, and where in it. transformers' classes state them for `output_router_logits`."""
    recorders: list[Any] = []
    for module in model.modules():
        stated = (getattr(module, "_can_record_outputs", None) or {}).get(RECORD)
        recorders += stated if isinstance(stated, list | tuple) else [stated] if stated is not None else []
    found: dict[nn.Module, int] = {}
    for recorder in recorders:
        for name, module in model.named_modules():
            if isinstance(module, recorder.target_class) and (recorder.layer_name or "") in name:
                found[module] = recorder.index
    return list(found.items())
