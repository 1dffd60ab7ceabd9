"""A served model as judge of completions, images included (the extra `server`)."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from boresight.errors import ConfigError
from boresight.rewards.extract import completion_text
from boresight.rewards.function import Failure, RewardFunc

if TYPE_CHECKING:
    from boresight.types import Conversation

QUESTION = """You are grading an answer to a question about the images above.

Question:
{prompt}

Reference answer (may be empty):
{solution}

Answer to grade:
{completion}

Grade it from 0 (wrong) to 10 (right and complete). End with one line: Score: <number>"""

SCORE = re.compile(r"score\s*[:=]\s*(-?\d+(?:\.\d+)?)(?:\s*/\s*\d+)?", re.IGNORECASE)
"""The last one in the judge's reply counts."""


def get_judge_reward(
    base_url: str,
    model: str,
    *,
    question: str = QUESTION,
    scale: tuple[float, float] = (0.0, 10.0),
    api_key: str | None = None,
    max_concurrent: int = 16,
    num_tries: int = 3,
    timeout_s: float = 60.0,
    sampling: dict[str, Any] | None = None,
) -> RewardFunc:
    """A reward between 0 and 1 from any server that speaks OpenAI's chat completions, vLLM's among them.

    A completion whose judge does not answer in time, or answers without a score, is a `Failure`: unscored, never 0.

    Args:
        base_url: up to and including ``/v1``.
        model: the name it is served under.
        question: what the judge is asked; `{prompt}`, `{solution}` and `{completion}` are filled in.
        scale: the lowest and highest score that the question asks for.
        api_key: sent as a bearer token.
        max_concurrent: requests under way at once.
        num_tries: attempts at each request, with growing pauses.
        timeout_s: seconds of one attempt.
        sampling: further fields of the request; by default temperature 0 and 512 tokens.

    Raises:
        ConfigError: httpx is not installed, or the scale is empty.
    """
    try:
        import httpx  # here, because it is optional: the extra `server`
    except ImportError as error:
        raise ConfigError("get_judge_reward needs httpx: pip install 'boresight[server]'") from error
    low, high = scale
    if high <= low:
        raise ConfigError(f"scale={scale} must go from a lower to a higher score.")
    options = {"temperature": 0.0, "max_tokens": 512} if sampling is None else sampling
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    url = f"{base_url.rstrip('/')}/chat/completions"

    async def judged(
        client: httpx.AsyncClient, gate: asyncio.Semaphore, content: list[dict[str, Any]]
    ) -> float | Failure:
        body = {"model": model, "messages": [{"role": "user", "content": content}]} | options
        reason = "no try was made"
        for attempt in range(num_tries):
            if attempt:
                await asyncio.sleep(min(0.5 * 2**attempt, 8.0))
            try:
                async with gate:
                    response = await client.post(url, json=body, headers=headers)
            except httpx.HTTPError as error:
                reason = f"the judge at {url} cannot be reached: {type(error).__name__} {error}".strip()
                continue
            if response.status_code < 500 and response.status_code != 429:
                return _score(response, low, high)
            reason = f"the judge at {url} answered {response.status_code}: {response.text[:200]}"
        return Failure(reason)

    async def judge_reward(
        prompts: Sequence[str | Conversation],
        completions: Sequence[str | Conversation],
        images: Sequence[Sequence[Any]] | None = None,
        solution: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | Failure]:
        golds = [""] * len(completions) if solution is None else solution
        images = [()] * len(completions) if images is None else images
        gate = asyncio.Semaphore(max_concurrent)
        async with httpx.AsyncClient(timeout=timeout_s) as client:
            return await asyncio.gather(
                *(
                    judged(client, gate, _content(question, *each))
                    for each in zip(prompts, completions, golds, images, strict=True)
                )
            )

    return judge_reward


def _content(
    question: str, prompt: str | Conversation, completion: str | Conversation, gold: Any, images: Sequence[Any]
) -> list[dict[str, Any]]:
    filled = {
        "{prompt}": _asked(prompt),
        "{solution}": "" if gold is None else str(gold),
        "{completion}": completion_text(completion),
    }
    # In one pass, so that a placeholder in a completion's text is not filled.
    text = re.sub("|".join(map(re.escape, filled)), lambda match: filled[match[0]], question)
    return [
        *({"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images),
        {"type": "text", "text": text},
    ]


def _asked(prompt: str | Conversation) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {completion_text([message])}" for message in prompt)


def _data_url(image: Any) -> str:
    encoded = io.BytesIO()
    image.save(encoded, "png")
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _score(response: Any, low: float, high: float) -> float | Failure:
    """The reply's score between 0 and 1."""
    if response.status_code != 200:
        return Failure(f"the judge answered {response.status_code}: {response.text[:200]}")
    try:
        text = response.json()["choices"][0]["message"]["content"] or ""
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return Failure(f"the judge's reply is no chat completion: {type(error).__name__} {error}")
    scores = SCORE.findall(text)
    if not scores:
        return Failure(f"the judge gave no score: {text[-200:]!r}")
    score = float(scores[-1])
    if not low <= score <= high:
        return Failure(f"the judge gave {score:g}, which is not between {low:g} and {high:g}")
    return (score - low) / (high - low)
