from __future__ import annotations

import torch

from boresight.advantage.shaping import soft_overlong_punishment


def test_closed_form() -> None:
    length = torch.tensor([0, 60, 61, 75, 99, 100, 101, 500])
    expected = torch.tensor([0.0, 0.0, -0.025, -0.375, -0.975, -1.0, -1.0, -1.0])
    torch.testing.assert_close(soft_overlong_punishment(length, 100, 40), expected)


def test_dapos_numbers() -> None:
    length = torch.tensor([16384, 17408, 20480])
    torch.testing.assert_close(soft_overlong_punishment(length, 20480, 4096), torch.tensor([0.0, -0.25, -1.0]))
