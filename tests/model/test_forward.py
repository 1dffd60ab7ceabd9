"""Both layouts against plain transformers, one row per completion, for every family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from boresight.demo.tiny import FAMILIES
from boresight.model.forward import GroupForward
from boresight.types import Group
from tests.model.conftest import Subject, Subjects

SHARING = sorted(FAMILIES.keys() - {"qwen3_5"})
CASES: dict[str, tuple[tuple[int, tuple[int, ...]], ...]] = {
    "K=1": ((1, (9,)),),
    "K=2": ((2, (7, 3)),),
    "K=8": ((1, (6, 1, 9, 4, 12, 2, 5, 3)),),
    "mixed": ((0, (4, 6)), (5, (3, 8, 1)), (1, (5,)), (2, (2, 7))),
}
"""Pictures of each group of one call, and the lengths of its completions."""


def groups_of(it: Subject, case: str) -> list[Group]:
    groups = [it.group(it.prompt(pictures, seed=place), lengths, seed=place) for place, (pictures, lengths) in enumerate(CASES[case])]
    # Not every token counts: neither the first nor one in the middle of the longest completion does.
    first = groups[0].completions[0]
    mask = first.mask.clone()
    mask[[0, 2]] = False
    return [replace(groups[0], completions=(replace(first, mask=mask), *groups[0].completions[1:])), *groups[1:]]


def weights_of(groups: Sequence[Group]) -> list[Tensor]:
    """A weight for every token, so that no gradient cancels by symmetry."""
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(len(completion.ids), generator=draw) * completion.mask for group in groups for completion in group.completions]


def plain_rows(it: Subject, groups: Sequence[Group]) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """For each completion, what plain transformers takes: the processor's output for the prompt, and the completion's ids after it."""
    for group in groups:
        inputs = it.processed(group.prompt)
        for completion in group.completions:
            after = completion.ids[None]
            grown = {
                "input_ids": torch.cat([inputs["input_ids"], after], 1),
                "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + after.shape[1], dtype=torch.long),
            }
            for name in ("token_type_ids", "mm_token_type_ids"):
                if name in inputs:
                    grown[name] = torch.cat([inputs[name], torch.zeros_like(after)], 1)
            yield {**inputs, **grown}, completion.ids


def plain_logp(model: nn.Module, inputs: dict[str, Tensor], ids: Tensor) -> Tensor:
    logits = model(**inputs, use_cache=False).logits[0].float()
    return logits[-len(ids) - 1 : -1].log_softmax(-1).gather(-1, ids[:, None])[:, 0]


Result = tuple[list[Tensor], dict[str, Tensor]]
"""Log-probabilities of each completion (zero where the mask is false), and every parameter's gradient of their weighted sum."""


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    model.zero_grad()
    return found


def oracle(it: Subject, model: nn.Module, groups: Sequence[Group]) -> Result:
    """One plain forward of one unpadded row for every completion, with all logits."""
    found = []
    for (inputs, ids), weight in zip(plain_rows(it, groups), weights_of(groups), strict=True):
        logp = plain_logp(model, inputs, ids)
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
    return max((a - b).abs().max().item() for a, b in zip(one[0], other[0], strict=True))


def worst_gradient(one: Result, other: Result) -> float:
    """Largest difference of a parameter's gradient, relative to its norm or a thousandth of the median norm."""
    norms = {name: value.norm().item() for name, value in other[1].items()}
    floor = 1e-3 * sorted(norms.values())[len(norms) // 2]
    assert floor > 0
    assert one[1].keys() == other[1].keys()
    return max((one[1][name] - value).norm().item() / max(norms[name], floor) for name, value in other[1].items())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_layouts_equal_plain_rows(subject: Subjects, family: str, case: str) -> None:
    it = subject(family)
    model = it.model()
    groups = groups_of(it, case)
    expected = oracle(it, model, groups)
    rows = ours(GroupForward(model, it.facts, layout="rows"), groups)
    print(family, case, "rows", worst_logp(rows, expected), worst_gradient(rows, expected))
    assert worst_logp(rows, expected) <= 1e-5
    assert worst_gradient(rows, expected) <= 1e-5
    if family in SHARING:
        shared = ours(GroupForward(model, it.facts, layout="shared"), groups)
        print(family, case, "shared", worst_logp(shared, expected), worst_gradient(shared, expected))
        assert worst_logp(shared, expected) <= 1e-5
        assert worst_gradient(shared, expected) <= 1e-5
        assert worst_gradient(shared, rows) <= 1e-5
