"""Plain transformers: one forward of one unpadded row for every completion, with all logits; and how far from it a result may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from boresight.model.forward import GroupForward
from boresight.types import Group
from tests.model.conftest import Subject

Result = tuple[list[Tensor], dict[str, Tensor]]
"""Log-probabilities of each completion, zero where its mask is false, and every parameter's gradient of their weighted sum."""


def weights_of(groups: Sequence[Group]) -> list[Tensor]:
    """A weight for every token, so that no gradient cancels by symmetry."""
    draw = torch.Generator().manual_seed(7)
    return [
        torch.randn(len(completion.ids), generator=draw) * completion.mask
        for group in groups
        for completion in group.completions
    ]


def plain_rows(it: Subject, groups: Sequence[Group]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """For each completion what transformers' own processor path makes of the prompt, with the completion's ids after it."""
    for group in groups:
        inputs = it.processed(group.prompt)
        for completion in group.completions:
            after = completion.ids[None]
            ids = torch.cat([inputs["input_ids"], after], 1)
            grown = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for name in {"token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids"} & inputs.keys():
                # In PaliGemma, 1 is an answer, which does not see its own future; elsewhere, an image.
                is_answer = name == "token_type_ids" and it.family.startswith("paligemma")
                grown[name] = torch.cat([inputs[name], torch.full_like(after, int(is_answer))], 1)
            if (
                seen := inputs.get("cross_attention_mask")
            ) is not None:  # an answer sees the images that its question ends with
                grown["cross_attention_mask"] = torch.cat(
                    [seen, seen[:, -1:].expand(-1, after.shape[1], *seen.shape[2:])], 1
                )
            taken = {name: value for name, value in {**inputs, **grown}.items() if name != "labels"}
            # Llama 4's processor returns bf16 pixels whatever the model.
            yield (
                {name: value.float() if value.is_floating_point() else value for name, value in taken.items()},
                completion.ids,
            )


def plain_logits(model: nn.Module, inputs: dict[str, Tensor], ids: Tensor) -> Tensor:
    """[C, V] what predicts each token of a completion."""
    return model(**inputs, use_cache=False).logits[0, -len(ids) - 1 : -1].float()


def picked(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    model.zero_grad()
    return found


def oracle(it: Subject, model: nn.Module, groups: Sequence[Group]) -> Result:
    found = []
    for (inputs, ids), weight in zip(plain_rows(it, groups), weights_of(groups), strict=True):
        logp = picked(plain_logits(model, inputs, ids), ids)
        (logp * weight).sum().backward()
        found.append(logp.detach() * (weight != 0))
    return found, gradients(model)


def ours(forward: GroupForward, groups: Sequence[Group], **options: Any) -> Result:
    stats = forward(groups, **options)
    weights = nn.utils.rnn.pad_sequence(weights_of(groups), True)
    (stats.logp * weights).sum().backward()
    lengths = [len(completion.ids) for group in groups for completion in group.completions]
    return [row[:length].detach() for row, length in zip(stats.logp, lengths, strict=True)], gradients(forward.outer)


def worst_logp(one: Result, other: Result) -> float:
    """In nats."""
    return max((a - b).abs().max().item() for a, b in zip(one[0], other[0], strict=True))


def worst_gradient(one: Result, other: Result) -> float:
    """Largest difference of a parameter's gradient, relative to its own norm or a thousandth of the median norm.

    A key's bias shifts all of a query's scores alike, so where nothing turns keys afterwards (CLIP, SigLIP) its gradient is zero in
    theory and 1e-8 of the median in float32: of those we ask that all stay below 1e-6 of the median. What is not used (LLaVA's last
    tower layer) has no gradient at all.
    """
    norms = {name: value.norm().item() for name, value in other[1].items()}
    used = sorted(norm for norm in norms.values() if norm)
    median = used[len(used) // 2]
    assert len(used) > 0.7 * len(norms) and one[1].keys() == norms.keys()
    worst = 0.0
    for name, value in other[1].items():
        if not norms[name]:
            assert not one[1][name].any(), name
        elif norms[name] < 1e-6 * median:
            assert name.endswith("k_proj.bias"), f"{name} has next to no gradient"
            assert one[1][name].norm().item() < 1e-6 * median, name
        else:
            worst = max(worst, (one[1][name] - value).norm().item() / max(norms[name], 1e-3 * median))
    return worst
