from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boresight.loss.divergence import DIVERGENCES, unbiased


@pytest.mark.parametrize(
    ("name", "expected"), [("k1", [2.0, -0.5]), ("k2", [2.0, 0.125]), ("k3", [1.1353353, 0.1487213])]
)
def test_closed_form(name: str, expected: list[float]) -> None:
    policy, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-3.0, -1.5]])
    torch.testing.assert_close(DIVERGENCES[name](policy, reference), torch.tensor([expected]))


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k2_and_k3_are_never_negative(policy: float, reference: float) -> None:
    for name in ("k2", "k3"):
        value = DIVERGENCES[name](torch.tensor([[policy]]), torch.tensor([[reference]]))
        assert value.item() >= 0
        assert (value.item() == 0) <= (abs(policy - reference) < 1e-3)


def test_the_unbiased_form_has_the_gradient_of_the_reverse_kl() -> None:
    """Summed over a three-word vocabulary on policy, E[∇(r · k3)] is ∇KL; E[∇k3] is not."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.5, 0.4, 0.1], dtype=torch.float64).log_softmax(-1)
    policy = logits.log_softmax(-1)
    probability = policy.detach().exp()
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)
    k3 = DIVERGENCES["k3"](policy[None], reference[None])
    corrected = unbiased(k3, (policy - policy.detach())[None])
    (with_ratio,) = torch.autograd.grad((probability * corrected).sum(), logits, retain_graph=True)
    (without,) = torch.autograd.grad((probability * k3).sum(), logits)
    torch.testing.assert_close(with_ratio, exact)
    assert (without - exact).abs().max() > 0.1
