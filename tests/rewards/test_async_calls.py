"""Async reward functions that misbehave."""

from __future__ import annotations

import asyncio
import sys
import time

import pytest

from boresight.rewards import Scorer


async def blocks(completions):
    time.sleep(5)


async def leaves(completions):
    sys.exit(3)


async def presses(completions):
    raise KeyboardInterrupt


async def cancels(completions):
    raise asyncio.CancelledError


async def stops(completions):
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return [3.0]


async def swallows(completions):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


async def sleeps(completions):
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("func", "reason"),
    [
        (leaves, "raised SystemExit: 3"),
        (presses, "raised KeyboardInterrupt"),
        (cancels, "raised CancelledError"),
        (sleeps, "took longer than reward_timeout=0.3 s"),
        (swallows, "did not give way at reward_timeout"),
        (blocks, "did not give way at reward_timeout"),
    ],
)
def test_an_async_function_obeys_its_deadline_whatever_it_does(make_group, caplog, monkeypatch, func, reason):
    """It has failed, in time; the scorer goes on to work with the next call."""
    monkeypatch.setattr("boresight.rewards.async_calls.GRACE_S", 0.3)
    calls = iter([func, stops])

    async def first_bad(completions):
        return await next(calls)(completions)

    scorer = Scorer(first_bad, timeout_s=0.3, max_failed_rate=1)
    assert scorer.score([make_group(["a"])]).failed.tolist() == [True]
    assert reason in caplog.text
    scorer.timeout_s = 10
    assert scorer.score([make_group(["a"])]).values.tolist() == [[3.0]], "a loop that is stopped goes on"


def test_who_blocks_the_loop_is_named(make_group, caplog, monkeypatch):
    monkeypatch.setattr("boresight.rewards.async_calls.GRACE_S", 0.3)

    async def waits(completions):
        await asyncio.sleep(0.1)
        return [1.0]

    table = Scorer([waits, blocks], timeout_s=0.4, max_failed_rate=1).score([make_group(["a"])])
    assert table.failed.tolist() == [True] and table.values.isnan().all()
    assert "'waits' failed" in caplog.text and "could not run, because 'blocks' blocked the event loop" in caplog.text
