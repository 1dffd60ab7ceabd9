"""How many tokens images take, from their sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from boresight.data.spans import Span
from boresight.errors import DataError, ImageError
from boresight.types import Row


def image_token_counts(processor: Any, row: Row) -> list[int] | None:
    """Tokens of each image of the row; None if the processor cannot tell without the pixels.

    Some processors leave out a few tokens of an image (`Family.uncounted_image_tokens`), or count tiles that they do not cut
    (LLaVA-OneVision, when a prompt has several images).

    Raises:
        DataError: the processor refuses an image of such a size.
    """
    if not row.images:
        return []
    count = _counter(processor)
    if count is None:
        return None
    try:
        return list(count(image_sizes=[[image.size[1], image.size[0]] for image in row.images])["num_image_tokens"])
    except Exception as error:  # of any kind, as when the processor runs
        raise refusal(error, row) from error


def counts_by_size(processor: Any) -> bool:
    """Whether the processor can count an image's tokens without its pixels."""
    return _counter(processor) is not None


def _counter(processor: Any) -> Callable[..., Any] | None:
    own = getattr(processor, "_get_num_multimodal_tokens", None)
    if own is not None or not hasattr(processor, "image_seq_len"):
        return own
    if not hasattr(processor.image_processor, "get_number_of_image_patches"):
        return None
    # SmolVLM's processor writes images as Idefics3's does, and lacks its count.
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor  # loads torchvision

    return partial(Idefics3Processor._get_num_multimodal_tokens, processor)


def refusal(error: Exception, row: Row) -> DataError:
    """What is said when a processor refuses a row."""
    sizes = ", ".join(f"{width}×{height}" for width, height in (image.size for image in row.images))
    reason = f"{type(error).__name__}: {error}".removesuffix(": ")
    return DataError(f"row {row.index}: the processor refuses it (images: {sizes or 'none'}): {reason}")


def unplaced(row: Row) -> ImageError:
    """What is said when nothing in a row's text stands for its images."""
    return ImageError(
        f"row {row.index}: nothing in its text stands for its {len(row.images)} image(s), so the model would not see them. If its "
        "messages name them, the chat template leaves them out: use the one of the model's processor."
    )


def expanded_tokens(
    tokens: Iterable[tuple[int, Span]], image_id: int | None, counts: Sequence[int]
) -> tuple[list[int], list[int], list[Span]]:
    """Ids, types (1 for an image) and offsets of tokens whose image tokens are repeated.

    Args:
        tokens: ids and offsets of a text in which one token stands for each image.
        image_id: the id of that token.
        counts: how many tokens each image takes, in order.
    """
    left = iter(counts)
    ids: list[int] = []
    types: list[int] = []
    offsets: list[Span] = []
    for id, offset in tokens:
        is_image = id == image_id
        times = next(left, 1) if is_image else 1
        ids += [id] * times
        types += [int(is_image)] * times
        offsets += [offset] * times
    return ids, types, offsets
