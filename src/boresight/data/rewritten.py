"""Conversations whose chat template writes earlier turns differently once more turns follow, as those that drop earlier thinking.

An assistant's turn is then learned after the text that it really had before it, in a branch that ends with it. Turns that the template
leaves as they are share a branch, and branches share the prompt:

    messages   user 1 · thinking 1, answer 1 · user 2 · thinking 2, answer 2
    prompt     user 1 ·
    branches            thinking 1, answer 1
                        answer 1 · user 2 · thinking 2, answer 2            (only what comes after user 2 counts)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import torch

from boresight.data.processing import Processing
from boresight.data.spans import RenderedBranch, counted_tokens
from boresight.errors import DataError
from boresight.types import Completion, Group, ImageSet, Prompt, Row


def branched_group(branches: Sequence[RenderedBranch], row: Row, processing: Processing) -> Group:
    """A group of as many completions as there are branches; its prompt is what they share, up to the first token that counts.

    Each branch has its own images after the prompt. Text after the end token of its last turn is left out.

    Args:
        branches: of one row, two or more.
        row: whose images are in the order of their placeholders.
        processing: of the encoder.

    Raises:
        DataError: branches share no prompt that can be told apart from what follows, or the processor refuses an image.
    """
    cut = _shared(branches, row, processing)
    text = branches[0].text[:cut]
    shown = text.count(processing.texts.image_token or "") if row.images else 0
    own = replace(row, images=row.images[:shown])
    processed = processing(text, own)
    unexpanded = processing.tokens(text, special=processing.adds_special(text, own))[0]
    prompt = Prompt(
        row=own,
        ids=torch.tensor(processed.ids),
        token_types=torch.tensor(processed.token_types),
        vision=processed.vision,
        unexpanded_ids=torch.tensor(unexpanded),
        token_inputs=processed.token_inputs,
    )
    return Group(prompt, tuple(_completion(branch, cut, shown, row, processing) for branch in branches))


def _completion(branch: RenderedBranch, cut: int, shown: int, row: Row, processing: Processing) -> Completion:
    """What a branch adds to the prompt.

    Args:
        cut: where the prompt ends, in characters.
        shown: images of the prompt.
    """
    text = branch.text[cut:]
    spans = [(start - cut, end - cut) for start, end in branch.spans]
    num_images = text.count(processing.texts.image_token or "") if row.images else 0
    images = row.images[shown : shown + num_images]
    own = replace(row, images=images)
    processed = processing(text, own, special=False)
    offsets = processed.offsets
    if offsets is None:
        offsets = processing.prefix_offsets(text, spans, processed, own, special=False)
    placed = processing.placed(text, offsets, processed, own)
    counted = counted_tokens(processed.ids, offsets, spans, processing.facts.stop_ids)
    mask = torch.tensor([counts and not theirs for counts, theirs in zip(counted, placed, strict=True)])
    if not mask.any():
        raise DataError(f"row {row.index}: no token would count in the loss: nothing but images is left. Drop the row.")
    length = int(mask.nonzero()[-1]) + 1
    ids = torch.tensor(processed.ids[:length])
    return Completion(
        ids=ids,
        mask=mask[:length],
        text=processing.texts.tokenizer.decode(ids[mask[:length]], skip_special_tokens=True),
        token_types=torch.tensor(processed.token_types[:length]),
        token_inputs={name: values[:length] for name, values in processed.token_inputs.items()},
        image_sets=(ImageSet(images, processed.vision),) if processed.vision else (),
    )


def _shared(branches: Sequence[RenderedBranch], row: Row, processing: Processing) -> int:
    """Where the text ends that all branches begin with, in characters: after a special token, so that the tokens of a branch are those of
    both parts."""
    most = min(_common([branch.text for branch in branches]), branches[0].spans[0][0])
    text = branches[0].text[:most]
    texts = processing.texts
    # No cut within an image: its markers belong to it.
    ends = [text.rfind(mark) + len(mark) for mark in texts.control if mark in text]
    for cut in sorted(ends, reverse=True):
        special = processing.adds_special(text, row)
        head = processing.tokens(text[:cut], special=special)[0]
        wholes = [processing.tokens(branch.text, special=special)[0] for branch in branches]
        rests = [processing.tokens(branch.text[cut:], special=False)[0] for branch in branches]
        if all([*head, *rest] == whole for rest, whole in zip(rests, wholes, strict=True)):
            return cut
    raise DataError(
        f"row {row.index}: the chat template renders earlier turns differently once more follow, and no special token ends what they "
        "have in common. Split the row into prompt and completion, or train on the whole text (assistant_only_loss=False)."
    )


def _common(texts: Sequence[str]) -> int:
    """How many characters all texts begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False)))
