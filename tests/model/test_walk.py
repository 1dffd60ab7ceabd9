from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boresight.model.walk import SHORT, SIMILAR, Walk
from tests.model.rows import row_of


def test_a_walk_by_hand() -> None:
    """Three tokens with branches of one and two, then two tokens with a lone completion of two: a sequence of four."""
    walk = Walk.of(row_of([(3, [1, 2]), (2, [2])]).spans)
    (prompts,), (branches,) = walk.prompts, walk.branches
    assert prompts.places.tolist() == [[6, 7, 8, 9], [0, 0, 1, 2]]
    assert prompts.real is not None and prompts.real.tolist() == [[True] * 4, [False, True, True, True]]
    assert branches.places.tolist() == [[4, 5], [3, 0]]
    assert branches.real is not None and branches.real.tolist() == [[True, True], [True, False]]
    # Both continue the first group's prompt, which runs second.
    assert branches.sources.tolist() == [1, 1]
    outputs = torch.cat([batch.places.flatten() for batch in (prompts, branches)])
    assert outputs[walk.restore].tolist() == list(range(10))


def test_a_branch_of_one_token_is_no_step_of_generation() -> None:
    (branches,) = Walk.of(row_of([(3, [1, 1])]).spans).branches
    assert branches.places.shape == (2, 2)


def test_the_prompt_runs_once() -> None:
    walk = Walk.of(row_of([(300, [128] * 8)]).spans)
    assert sum(batch.places.numel() for batch in (*walk.prompts, *walk.branches)) == 300 + 8 * 128
    assert len(walk.prompts) == len(walk.branches) == 1
    assert walk.prompts[0].real is None and walk.branches[0].real is None


LENGTHS = st.integers(0, 400)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.lists(LENGTHS, min_size=1, max_size=6)), min_size=1, max_size=4))
def test_every_token_runs_once_with_little_padding(shapes: list[tuple[int, list[int]]]) -> None:
    row = row_of(shapes)
    walk = Walk.of(row.spans)
    batches = [*walk.prompts, *walk.branches]
    outputs = torch.cat([batch.places.flatten() for batch in batches])
    assert outputs[walk.restore].tolist() == list(range(len(row.ids)))
    for batch in batches:
        shortest = batch.places.shape[1] if batch.real is None else int(batch.real.sum(1).min())
        assert max(shortest, SHORT) >= SIMILAR * batch.places.shape[1]
