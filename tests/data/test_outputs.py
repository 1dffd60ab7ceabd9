from __future__ import annotations

import numpy
import torch

from boresight.data.outputs import as_tensor, separated


def test_outputs_are_told_apart_by_what_they_hold() -> None:
    """Two tokens, one image of two patches: an image's tensors come ready, a text's do not."""
    outputs = {
        "input_ids": [[7, 8]],
        "attention_mask": [[1, 1]],
        "labels": numpy.array([[7, 8]]),
        "offset_mapping": [[(0, 1), (1, 2)]],
        "mm_token_type_ids": [[0, 1]],
        "moe_mm_token_type_ids": numpy.array([[0, 1]]),
        "cross_attention_mask": numpy.ones((1, 2, 1, 4), dtype=numpy.int64),
        "pixel_values": torch.ones(1, 2, 3),
        "image_grid_thw": torch.tensor([[1, 1, 2]]),
        "image_sizes": [[64, 96]],
        "scale": [[0.5, 2.0]],
        "patches": torch.ones(1, 2, dtype=torch.long),
        "names": ["a cat"],
    }
    tokens, vision = separated({**outputs, "image_sizes": [[64, 96, 3]]}, 2)
    assert {name: tuple(values.shape) for name, values in tokens.items()} == {
        "mm_token_type_ids": (2,),
        "moe_mm_token_type_ids": (2,),
        "cross_attention_mask": (2, 1, 4),
    }
    assert set(vision) == {"pixel_values", "image_grid_thw", "image_sizes", "scale", "patches"}
    assert vision["image_sizes"].tolist() == [[64, 96, 3]]


def test_types_of_tokens_may_come_ready() -> None:
    tokens, vision = separated({"token_type_ids": torch.tensor([[0, 1]])}, 2)
    assert tokens["token_type_ids"].tolist() == [0, 1] and not vision


def test_what_is_no_array() -> None:
    assert as_tensor(["a cat"]) is None
    assert as_tensor([[1, 2], [3]]) is None
