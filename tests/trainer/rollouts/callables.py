"""Tools and environments for tests. Workers import this module, and so it imports neither torch nor pytest."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from PIL import Image

RED = Image.new("RGB", (56, 84), "red")


def show(size: int) -> list[dict[str, Any]]:
    """Show an image.

    Args:
        size: Its height.
    """
    return [{"type": "text", "text": "look:"}, {"type": "image", "image": Image.new("RGB", (56, size), "blue")}]


def times(a: int, b: int) -> int:
    """
    Multiply two numbers.

    Args:
        a: One factor.
        b: The other factor.

    Returns:
        Their product.
    """
    return a * b


async def slow_times(a: int, b: int) -> int:
    """
    Multiply two numbers on another machine.

    Args:
        a: One factor.
        b: The other factor.

    Returns:
        Their product.
    """
    await asyncio.sleep(0.01)
    return a * b


def hangs() -> str:
    """Never come back."""
    time.sleep(3600)
    return ""


def raises() -> str:
    """Raise."""
    raise ValueError("out of order")


def nothing() -> None:
    """Return nothing."""


def many() -> list[dict[str, Any]]:
    """Show ten images."""
    return [{"type": "image", "image": RED}] * 10


def broken() -> list[dict[str, Any]]:
    """Show a broken image."""
    return [{"type": "image", "image": b"\x89PNG broken"}]


def long() -> str:
    """Return a long text."""
    return "x" * 10_000_000


class Guess:
    """A game."""

    def reset(self, solution: str = "", **columns: Any) -> str:
        self.solution, self.tries = solution, 0
        self.seen = sorted(columns)
        return " You may guess."

    def guess(self, word: str) -> str:
        """Guess the answer.

        Args:
            word: The guess.
        """
        self.tries += 1
        return "right" if word == self.solution else "wrong"

    async def wait(self, seconds: float) -> str:
        """Wait.

        Args:
            seconds: How long.
        """
        await asyncio.sleep(seconds)
        return "waited"

    def get_reward(self) -> float:
        return float(self.tries)


class IncrementEnv:
    def reset(self, **kwargs: Any) -> None:
        self.counter = 0

    def increment(self, step: int) -> int:
        """
        Increment the counter.

        Args:
            step: How much is added.

        Returns:
            The counter.
        """
        self.counter += step
        return self.counter


class LooksAround:
    """Shows an image when it is reset, as part of the prompt."""

    def reset(self, answer: str, **kwargs: Any) -> list[dict[str, Any]]:
        self.answer = answer
        shown = Image.new("RGB", (56, 28), "red" if answer == "6" else "blue")
        return [{"type": "text", "text": " You see: "}, {"type": "image", "image": shown}]

    def look(self) -> list[dict[str, Any]]:
        """Look again."""
        return [{"type": "image", "image": Image.new("RGB", (28, 56), "green")}]


class Broken(LooksAround):
    def reset(self, answer: str, **kwargs: Any) -> list[dict[str, Any]]:
        return [{"type": "image", "image": b"no image"}]


class Number(LooksAround):
    def reset(self, answer: str, **kwargs: Any) -> Any:
        return 7
