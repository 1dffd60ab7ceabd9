from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from boresight.data import Encoder, read_row
from boresight.errors import ConfigError, ModelError

LARGE = read_row({"prompt": "x", "image": Image.new("RGB", (320, 160))}, 0)
SMALL = read_row({"prompt": "x", "image": Image.new("RGB", (17, 17))}, 0)


def pixels(encoder: Encoder, row: Any) -> int:
    _, height, width = encoder.prompt(row).vision["image_grid_thw"][0].tolist()
    return height * width * encoder.processor.image_processor.patch_size**2


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_budget_holds_what_the_tower_sees_and_what_is_saved(
    family: str, encoder: Callable[..., Encoder], tmp_path: Any
) -> None:
    free, bounded = encoder(family), encoder(family, min_pixels=2500, max_pixels=9000)
    assert pixels(free, LARGE) > 9000 >= pixels(bounded, LARGE)
    assert pixels(bounded, SMALL) >= 2500
    assert bounded.count_tokens(LARGE) == len(bounded.prompt(LARGE).ids)
    bounded.processor.save_pretrained(tmp_path)
    again = Encoder(type(bounded.processor).from_pretrained(tmp_path), facts=bounded.facts)
    assert pixels(again, LARGE) == pixels(bounded, LARGE)


def test_none_leaves_the_checkpoints_own_bound(encoder: Callable[..., Encoder]) -> None:
    own = dict(encoder().processor.image_processor.size)
    assert dict(encoder(max_pixels=9000).processor.image_processor.size) == own | {"longest_edge": 9000}


@pytest.mark.parametrize("family", ["smolvlm", "llava_next", "internvl", "gemma3"])
def test_families_without_a_budget_say_so(family: str, encoder: Callable[..., Encoder]) -> None:
    with pytest.raises(ModelError, match="has no pixel budget"):
        encoder(family, max_pixels=9000)


def test_impossible_budgets(encoder: Callable[..., Encoder]) -> None:
    with pytest.raises(ConfigError, match=r"min_pixels \(9001\) is larger than max_pixels \(9000\)"):
        encoder(min_pixels=9001, max_pixels=9000)
    with pytest.raises(ConfigError, match="less than one image token"):
        encoder(min_pixels=1, max_pixels=10)
