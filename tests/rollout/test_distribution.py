from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from boresight.rollout.distribution import Distribution, uniforms
from boresight.sampling import SamplingSettings
from boresight.types import Prompt, Row

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 3.0, -0.25]])
NOTHING = torch.empty(1, 0, dtype=torch.long)
FREE = torch.tensor([], dtype=torch.long)


def probabilities(settings: SamplingSettings, banned: Tensor = FREE, history: Tensor = NOTHING) -> list[float]:
    return Distribution(settings, banned).logp(LOGITS, history).exp()[0].tolist()


def softmax(*logits: float) -> list[float]:
    return torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()


def numbered(index: int) -> Prompt:
    ids = torch.tensor([1])
    return Prompt(Row(index, "x", (), (), {}), ids, torch.zeros_like(ids), {}, ids)


INF = float("inf")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SamplingSettings(), softmax(2, -1, 0.5, 3, -0.25)),
        (SamplingSettings(temperature=0.5), softmax(4, -2, 1, 6, -0.5)),
        (SamplingSettings(top_k=2), softmax(2, -INF, -INF, 3, -INF)),
        # The likeliest has 0.66: one more is needed to reach 0.7.
        (SamplingSettings(top_p=0.7), softmax(2, -INF, -INF, 3, -INF)),
        (SamplingSettings(top_p=0.6), [0, 0, 0, 1, 0]),
        # exp(0.5 - 3) = 0.082, exp(-0.25 - 3) = 0.039.
        (SamplingSettings(min_p=0.05), softmax(2, -INF, 0.5, 3, -INF)),
        # Temperature comes before the narrowing: at 2 the third has exp(-1.25) = 0.29 of the first.
        (SamplingSettings(temperature=2.0, min_p=0.28), softmax(1, -INF, 0.25, 1.5, -INF)),
        # Greedy: log-probabilities of temperature 1, nothing narrowed.
        (SamplingSettings(temperature=0.0, top_k=1, top_p=0.1, min_p=0.9), softmax(2, -1, 0.5, 3, -0.25)),
    ],
)
def test_distributions(settings: SamplingSettings, expected: list[float]) -> None:
    assert probabilities(settings) == pytest.approx(expected, abs=1e-6)


def test_banned_ids_have_no_probability_and_no_place_in_top_k() -> None:
    assert probabilities(SamplingSettings(top_k=2), torch.tensor([3])) == pytest.approx(
        softmax(2, -INF, 0.5, -INF, -INF)
    )


def test_repetition_penalty_divides_what_is_likely_and_multiplies_what_is_not() -> None:
    settings = SamplingSettings(repetition_penalty=2.0)
    expected = softmax(2, -2, 0.5, 1.5, -0.25)
    assert probabilities(settings, history=torch.tensor([[3, 1]])) == pytest.approx(expected)
    # A row may be padded with ids of its own: what counts is the set.
    assert probabilities(settings, history=torch.tensor([[3, 3, 3, 3, 1]])) == pytest.approx(expected)


def test_half_precision_logits_are_normalised_in_float32() -> None:
    logp = Distribution(SamplingSettings(), FREE).logp(LOGITS.bfloat16(), NOTHING)
    assert logp.dtype == torch.float32
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_greedy_takes_the_likeliest_whatever_the_numbers() -> None:
    greedy = Distribution(SamplingSettings(temperature=0.0), FREE)
    for number in (0.0, 0.999):
        assert greedy.choose(greedy.logp(LOGITS, NOTHING), torch.tensor([number], dtype=torch.float64)).item() == 3


def test_draws_follow_the_distribution() -> None:
    """Pearson's chi-square with 3 degrees of freedom (one id is banned): 16.3 is exceeded once in a thousand."""
    count = 20_000
    distribution = Distribution(SamplingSettings(temperature=1.5), torch.tensor([0]))
    logp = distribution.logp(LOGITS, NOTHING)
    numbers = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    drawn = distribution.choose(logp.expand(count, -1), numbers).bincount(minlength=5)
    expected = logp[0].exp() * count

    def chi_square(wanted: Tensor) -> float:
        return ((drawn - wanted)[1:] ** 2 / wanted[1:]).sum().item()

    assert drawn[0] == 0
    assert chi_square(expected) < 16.3
    # Negative control: the draws are not those of temperature 1.
    assert chi_square(Distribution(SamplingSettings(), torch.tensor([0])).logp(LOGITS, NOTHING)[0].exp() * count) > 100


@given(
    logits=st.lists(st.floats(-30, 30), min_size=2, max_size=40),
    number=st.sampled_from([0.0, 0.5, 1 - 2**-53]) | st.floats(0, 1, exclude_max=True),
    data=st.data(),
)
def test_what_is_drawn_has_some_probability(logits: list[float], number: float, data: st.DataObject) -> None:
    banned = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits) - 1))
    distribution = Distribution(SamplingSettings(), torch.tensor(sorted(banned), dtype=torch.long))
    logp = distribution.logp(torch.tensor([logits]), NOTHING)
    token = distribution.choose(logp, torch.tensor([number], dtype=torch.float64)).item()
    assert 0 <= token < len(logits)
    assert token not in banned
    below = logp[0].double().exp()[:token].sum().item()
    assert below <= number + 1e-6
    assert number <= below + logp[0, int(token)].double().exp().item() + 1e-6


def test_seeded_numbers_belong_to_the_row_not_to_the_call() -> None:
    settings = SamplingSettings(2, 3, seed=1)
    both = uniforms([numbered(4), numbered(9)], settings)
    assert both.shape == (4, 3) and both.dtype == torch.float64
    assert torch.equal(both, uniforms([numbered(9), numbered(4)], settings).roll(2, 0))
    assert torch.equal(both[:2], uniforms([numbered(4)], settings))
    twice = uniforms([numbered(4), numbered(4)], settings)
    assert torch.equal(twice[:2], both[:2]) and not torch.equal(twice[2:], both[:2])
    assert not torch.equal(both, uniforms([numbered(4), numbered(9)], replace(settings, seed=2)))
    assert both.unique().numel() == both.numel()


def test_without_a_seed_numbers_come_from_the_global_generator() -> None:
    settings = SamplingSettings(2, 3)
    torch.manual_seed(0)
    first = uniforms([numbered(4)], settings)
    second = uniforms([numbered(4)], settings)
    torch.manual_seed(0)
    assert torch.equal(first, uniforms([numbered(4)], settings)) and not torch.equal(first, second)
    # Greedy sampling leaves the generator alone.
    state = torch.get_rng_state()
    uniforms([numbered(4)], replace(settings, temperature=0.0))
    assert torch.equal(state, torch.get_rng_state())
