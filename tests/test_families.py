"""The records against real classes: what stands in them is what their models do."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from transformers import AutoModelForImageTextToText

from boresight.families import FAMILIES, UNKNOWN, Part, family_of, why_no_branches
from boresight.model.vision import text_parameters
from tests.tiny import FAMILIES as TINY
from tests.tiny import build_tiny

PROJECTORS = {
    "qwen2_vl": {"visual.merger"},
    "qwen2_5_vl": {"visual.merger"},
    "qwen3_vl": {"visual.merger", "visual.deepstack_merger_list"},
    "qwen3_5": {"visual.merger"},
    "qwen3_5_moe": {"visual.merger"},
    "lfm2_vl": {"multi_modal_projector"},
    "smolvlm": {"connector"},
    "idefics3": {"connector"},
    "llava": {"multi_modal_projector"},
    "llava_next": {"multi_modal_projector", "image_newline"},
    "llava_onevision": {"multi_modal_projector", "image_newline"},
    "internvl": {"multi_modal_projector"},
    "gemma3": {"multi_modal_projector"},
}


@pytest.mark.parametrize("family", TINY)
def test_every_weight_belongs_to_its_part(family: str, tmp_path: Path) -> None:
    """The language model is what `get_decoder` and the head are; projectors are written down here by hand."""
    model: Any = AutoModelForImageTextToText.from_pretrained(build_tiny(family, tmp_path))
    record, text = family_of(model.config.model_type), text_parameters(model)
    parts: dict[str, set[str]] = defaultdict(set)
    for name, weight in model.named_parameters():
        assert (record.part(name) == "language") == (weight in text) == (not re.fullmatch(record.not_language, name)), (
            name
        )
        for part in get_args(Part):
            others = [other for other in get_args(Part) if other != part]
            assert (record.part(name) == part) == bool(re.fullmatch(record.names_of(part), name)), name
            assert (record.part(name) == part) != bool(re.fullmatch(record.names_of(*others), name)), name
        parts[record.part(name)].add(name)
    assert set(parts) == {"vision", "projector", "language"}
    for place in PROJECTORS[family]:
        assert any(place in name for name in parts["projector"])
    assert all(any(place in name for place in PROJECTORS[family]) for name in parts["projector"])


def test_a_family_that_nobody_listed_has_the_defaults() -> None:
    assert "made_up" not in FAMILIES
    assert family_of("made_up") is UNKNOWN
    assert family_of("gemma3").blocks == "image" and UNKNOWN.blocks is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, None),
        ({"layer_types": ["full_attention", "sliding_attention"]}, None),
        ({"layer_types": ["linear_attention", "full_attention", "conv"]}, None),
        ({"layer_types": ["full_attention", "hybrid", "chunked_attention"]}, "chunked_attention, hybrid cannot branch"),
        ({"attn_logit_softcapping": 50.0}, "caps its attention scores"),
    ],
)
def test_what_keeps_completions_from_branching(config: dict[str, Any], reason: str | None) -> None:
    found = why_no_branches(SimpleNamespace(**config))
    assert found is reason if reason is None else reason in str(found)


def test_the_records_cost_no_heavy_import() -> None:
    """`--help` of a command reads them."""
    heavy = "import sys, boresight.families; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
