from __future__ import annotations

from typing import Any

import pytest

from boresight.errors import ConfigError
from boresight.model.part_options import PartOptions, PartPlan, part_plan


@pytest.mark.parametrize(
    "train",
    [
        "projector=full,language=lora",
        " language = lora , projector = full ",
        '{"projector": "full", "language": "lora"}',
        {"projector": "full", "language": "lora", "vision": "frozen"},
    ],
)
def test_the_ways_to_write_a_plan(train: Any) -> None:
    plan = part_plan(PartOptions(train=train, lr={"language": 1e-4}))
    assert plan.how == {"vision": "frozen", "projector": "full", "language": "lora"}
    assert plan.lr == {"language": 1e-4}
    assert (plan.parts("frozen"), plan.parts("full"), plan.parts("lora")) == (
        ("vision",),
        ("projector",),
        ("language",),
    )


@pytest.mark.parametrize(
    "lr", ["vision=1e-6,language=1e-4", {"vision": 1e-6, "language": 1e-4}, '{"vision": "1e-6", "language": 0.0001}']
)
def test_learning_rates_without_a_plan(lr: Any) -> None:
    assert part_plan(PartOptions(lr=lr)) == PartPlan(None, {"vision": 1e-6, "language": 1e-4})


def test_nothing_is_planned_by_default() -> None:
    assert part_plan(PartOptions()) == PartPlan()
    assert PartPlan().parts("full") == ()


@pytest.mark.parametrize(
    ("train", "lr", "message"),
    [
        ("vison=full", None, r"train: 'vison' is not one of 'vision', 'projector', 'language'. Did you mean 'vision'"),
        ("vision=ful", None, r"train: vision='ful' is not one of 'frozen', 'lora', 'full'. Did you mean 'full'"),
        ("vision", None, r"train='vision': write it like projector=full,language=lora"),
        ("vision=full,", None, r"write it like projector=full"),
        ("vision=full,vision=lora", None, r"names vision twice"),
        ("[1]", None, r"write it like"),
        ("vision=frozen", None, r"trains nothing, because a part that is not named is frozen: add language=lora"),
        ({}, None, r"trains nothing"),
        ("language=full", "vision=1e-6", r"lr: vision=1e-06 has no effect, because train freezes vision"),
        (None, "1e-6", r"lr='1e-6': write it like vision=1e-6"),
        (None, "vision=0", r"lr: vision='0' is not a number above 0; .* vision=frozen"),
        (None, "vision=nan", r"not a number above 0"),
        (None, {"tower": 1e-6}, r"lr: 'tower' is not one of"),
    ],
)
def test_what_is_no_plan_says_so(train: Any, lr: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        part_plan(PartOptions(train=train, lr=lr))
