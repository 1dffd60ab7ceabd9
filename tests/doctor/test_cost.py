"""Operations and bytes of a step, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from boresight.doctor.cost import (
    CARDS,
    Card,
    Rates,
    Work,
    forward_flops,
    price,
    sample_seconds,
    step_seconds,
    update_flops,
)
from boresight.doctor.size import Size, Stack
from boresight.errors import ConfigError

SIZE = Size(
    weights={"vision": 50, "projector": 7, "language": 1000},
    language=Stack(num_layers=2, width=10, kv_width=5, mlp_width=20),
    vision=None,
    num_active=600,
    num_head=200,
    num_in_layers=700,
    patches_per_token=4.0,
)
WORK = Work(prompts=3, completions=2, prompt_tokens=8, image_tokens=6, completion_tokens=4)
RATES = Rates(Card(memory=1e6, flops=1e6, bandwidth=2e4, link=1e4, network=1e3), utilisation=0.5, bandwidth_share=0.5)


def test_operations_of_a_forward_pass() -> None:
    """A prompt is read once for its two completions, and only completions reach the head."""
    language = 2 * 600 * (8 + 2 * 4) + 2 * 200 * 8 + 4 * 2 * 10 * (8 * 8 / 2 + 8 * (8 + 2))
    vision = 2 * 6 * (4 * 50 + 7)
    found = forward_flops(SIZE, WORK)
    assert (found.language, found.vision) == (3 * language, 3 * vision)
    assert update_flops(SIZE, WORK, adapter=False) == 4 * found.total
    assert update_flops(SIZE, WORK, adapter=False, checkpointing=False) == 3 * found.total
    assert update_flops(SIZE, WORK, adapter=True) == 3 * found.language + found.vision


def test_sampling_reads_weights_and_keys_in_every_step() -> None:
    """One GPU: 6 completions of 4 tokens, which attend to 8 + 2 on the mean; 40 bytes of keys and values for a token."""
    read = 4 * (2 * 1057 + 2 * 2 * 2 * 5 * 6 * (8 + 2))
    expected = forward_flops(SIZE, WORK).total / 5e5 + read / 1e4
    assert sample_seconds(SIZE, WORK, RATES, 1) == pytest.approx(expected)
    two = forward_flops(SIZE, WORK).total / 1e6 + 4 * (2 * 1057 + 40 * 3 * 10) / 1e4
    assert sample_seconds(SIZE, WORK, RATES, 2) == pytest.approx(two)


def test_sampling_takes_turns_where_keys_do_not_fit_and_divides_a_large_model() -> None:
    """40 bytes for each of 24 + 24 tokens need 1,920 bytes."""
    tight = replace(RATES, card=replace(RATES.card, memory=(2114 + 1000) / 0.9))
    waves = sample_seconds(SIZE, WORK, tight, 1)
    whole = sample_seconds(SIZE, WORK, RATES, 1)
    assert waves is not None and whole is not None
    assert waves - whole == pytest.approx(4 * 2114 / 1e4)
    small = replace(RATES, card=replace(RATES.card, memory=2000 / 0.9))
    assert sample_seconds(SIZE, WORK, small, 1) is None
    assert sample_seconds(SIZE, WORK, small, 2) is not None


def test_phases_of_a_step() -> None:
    found = step_seconds(SIZE, WORK, RATES, 4, adapter_weights=0, sharded=False, held_bytes=1000)
    sharded = step_seconds(SIZE, WORK, RATES, 4, adapter_weights=0, sharded=True, held_bytes=1000)
    lora = step_seconds(SIZE, WORK, RATES, 16, adapter_weights=10, sharded=False, held_bytes=1000)
    layers = step_seconds(SIZE, WORK, RATES, 4, adapter_weights=0, sharded=True, held_bytes=1000, layer_passes=3)
    assert found is not None and sharded is not None and lora is not None and layers is not None
    assert layers.exchange == pytest.approx(0.75 * (6 * 357 + 3 * 8 * 700) / 5e3)
    assert found.update == pytest.approx(update_flops(SIZE, WORK, adapter=False) / (5e5 * 4))
    assert found.exchange == pytest.approx(0.75 * 8 * 1057 / 5e3)
    assert sharded.exchange == pytest.approx(0.75 * 6 * 1057 / 5e3)
    assert lora.exchange == pytest.approx(15 / 16 * 8 * 10 / 5e2)  # over the network
    assert (found.optimizer, found.sync) == (pytest.approx(2 * 1000 / 1e4), pytest.approx(2 * 1057 / 5e3))
    assert found.total == pytest.approx(found.sample + found.update + found.exchange + found.optimizer + found.sync)
    one = step_seconds(SIZE, WORK, RATES, 1, adapter_weights=0, sharded=False, held_bytes=0)
    assert one is not None and one.exchange == 0
    assert price(360, RATES, 4) == pytest.approx(0.1 * 4 * 3)


def test_work_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="image_tokens=9 are among prompt_tokens=8"):
        replace(WORK, image_tokens=9)
    with pytest.raises(ConfigError, match="must be above 0"):
        replace(WORK, completions=0)


def test_cards_are_ordered() -> None:
    """A control of the units: no card is a thousand times another."""
    for field in ("memory", "flops", "bandwidth", "link", "network"):
        values = [getattr(card, field) for card in CARDS.values()]
        assert max(values) < 40 * min(values)
