"""Whether tokenizer, processor and model speak of the same ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image

from boresight.data.schema import read_row
from boresight.errors import UserError
from boresight.modules import unwrap
from boresight.preflight.finding import Finding
from boresight.preflight.set_up import SetUp


def check_vocabulary(set_up: SetUp) -> Iterator[Finding]:
    """Every id of the tokenizer has an embedding, and processor and model have the same placeholder of images."""
    tokenizer, facts = set_up.encoder.tokenizer, set_up.facts
    embeddings: Any = unwrap(set_up.model).get_input_embeddings()
    rows = len(embeddings.weight)
    missing = sorted((id, token) for token, id in tokenizer.get_vocab().items() if id >= rows)
    if missing:
        id, token = missing[0]
        yield Finding(
            "vocabulary", "error", "processing_class",
            f"{len(missing)} tokens of the tokenizer have no embedding: the model has {rows}, and {token!r} has the id {id}.",
            "Pass the model's own processor, or call model.resize_token_embeddings(len(tokenizer)) and save the model.",
        )  # fmt: skip
    if (
        facts.image_token_id is not None
        and (ids := _ids_of_an_image(set_up)) is not None
        and facts.image_token_id not in ids
    ):
        yield Finding(
            "vocabulary", "error", "processing_class",
            f"the model replaces the id {facts.image_token_id} by image features, and the processor does not write it "
            f"(it writes images as {set_up.encoder.texts.image_token!r}): no image would be read.",
            "Pass the model's own processor.",
        )  # fmt: skip


def _ids_of_an_image(set_up: SetUp) -> list[int] | None:
    """The ids of a prompt with one image; None where the processor refuses it, which the check of rows names."""
    encoder = set_up.encoder
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    has_template = getattr(encoder.processor, "chat_template", None)
    prompt = [{"role": "user", "content": content}] if has_template else f"{encoder.texts.image_token}?"
    try:
        return encoder.prompt(read_row({"prompt": prompt, "image": Image.new("RGB", (64, 64))}, 0)).ids.tolist()
    except UserError:
        return None
