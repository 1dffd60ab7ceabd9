"""Whether the longest row, and what is sampled after it, is within the positions that the model was made for."""

from __future__ import annotations

from collections.abc import Iterator

from boresight.modules import unwrap
from boresight.preflight.finding import Finding
from boresight.preflight.set_up import SetUp


def check_context(set_up: SetUp) -> Iterator[Finding]:
    """The longest sequence against `max_position_embeddings`."""
    config = unwrap(set_up.model).config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    sampled = getattr(set_up.args, "max_completion_length", None) or 0
    if limit is None or set_up.max_tokens is None or set_up.max_tokens + sampled <= limit:
        return
    longest = f"the longest row has {set_up.max_tokens} tokens"
    yield Finding(
        "context", "warning", "max_completion_length" if sampled else "max_length",
        f"{longest}{f' and up to {sampled} more are sampled' if sampled else ''}; the model has {limit} positions.",
        "Lower max_pixels" + (" or max_completion_length" if sampled else ", set max_length") + ", or drop the longest rows.",
    )  # fmt: skip
