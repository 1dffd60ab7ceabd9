from __future__ import annotations

import pytest
import torch

from boresight.loss.likelihood import likelihood_loss, likelihood_total

LOGP = torch.tensor([[-1.0, -2.0, 5.0], [-0.6, -9.0, float("nan")]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_closed_form() -> None:
    assert likelihood_total(MASK).item() == 3
    assert likelihood_loss(LOGP, MASK, 3.0).item() == pytest.approx(1.2)


def test_micro_batches_add_up_to_the_step() -> None:
    total = likelihood_total(MASK)
    parts = [likelihood_loss(LOGP[[row]], MASK[[row]], total) for row in (0, 1)]
    assert sum(part.item() for part in parts) == pytest.approx(1.2)
