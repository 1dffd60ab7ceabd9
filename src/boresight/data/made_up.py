"""Made-up groups on which a model's layouts are compared with its own forward."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from boresight.data.encode import Encoder
from boresight.data.images import decode
from boresight.data.schema import read_row
from boresight.errors import DataError, ImageError, ModelError
from boresight.types import Completion, Example, ExampleSource, Group, Prompt

WORDS = "What is in the image?"
IMAGES: tuple[tuple[tuple[int, int], ...], ...] = (((112, 112),), ((112, 112),), ((224, 112), (112, 112)), ())
"""Width and height of each prompt's images: two prompts with one image of the same size, one with two of other sizes, one without."""
TEXT_TOKENS = 48
"""Fewest tokens of the prompt without images. It is also longer than the model's window, unless that is above `LONGEST`."""
LONGEST = 1200
"""Most tokens that are made up to pass a window. What a longer window hides is not compared."""
LENGTHS = (5, 3)
"""Tokens of every prompt's completions. The second is the beginning of the first: what follows must not change it."""


def example_source(encoder: Encoder) -> ExampleSource:
    """Examples for the model whose processor an encoder runs."""
    encoder = encoder.without_tools()
    processor = encoder.processor
    settings = {
        "class": type(processor).__name__,
        "image": getattr(processor, "image_processor", None),
        "template": encoder.tokenizer.chat_template,
        "own template": getattr(processor, "chat_template", None),
        "variables": encoder.texts.chat_template_kwargs,
        "ids": encoder.facts.modality_ids,
        "sampled": (encoder.facts.vocab_size, len(encoder.tokenizer)),
        "groups": (IMAGES, TEXT_TOKENS, LONGEST, LENGTHS, WORDS, encoder.facts.window),
    }
    return ExampleSource(hashlib.sha256(str(settings).encode()).hexdigest(), lambda: made_up_examples(encoder))


def made_up_examples(encoder: Encoder) -> list[Example]:
    """Prompts with the same words and other images, each with two completions of random ordinary tokens.

    What the processor refuses is left out, as long as one prompt with an image remains: some families take no prompt without one, or no
    second image. With a chat template that leaves images out, a prompt of text remains.

    Raises:
        DataError: the processor cannot prepare a prompt with an image, or no prompt at all.
        ModelError: the encoder's ids are not those of the processor's own path.
    """
    generator = torch.Generator().manual_seed(0)
    completions = _completions(encoder, generator)
    examples, refusals = [], []
    for sizes in IMAGES:
        images = [noise(size, generator) for size in sizes]
        try:
            prompt = _prompt(encoder, images)
        except ImageError as error:  # a chat template for text alone, which rows with images are refused with
            refusals.append(error)
            continue
        except DataError:
            if len(images) == 1:
                raise
            continue
        processed = _processed(encoder, prompt)
        if processed["input_ids"][0].tolist() != prompt.ids.tolist():
            raise ModelError(
                f"{type(encoder.processor).__name__} makes other ids of a conversation than boresight does: "
                f"{encoder.tokenizer.decode(processed['input_ids'][0])!r} instead of {encoder.tokenizer.decode(prompt.ids)!r}."
            )
        examples.append(Example(Group(prompt, completions), processed))
    if not examples:
        raise refusals[0]
    return examples


def noise(size: tuple[int, int], generator: torch.Generator) -> Image.Image:
    """Random blocks of colour. Unlike fine noise, they survive any resizing."""
    pixels = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.NEAREST)


def _completions(encoder: Encoder, generator: torch.Generator) -> tuple[Completion, ...]:
    facts = encoder.facts
    known = set(range(min(facts.vocab_size, len(encoder.tokenizer))))
    ordinary = torch.tensor(sorted(known - {*facts.modality_ids, *facts.stop_ids, *encoder.tokenizer.all_special_ids}))
    ids = ordinary[torch.randint(len(ordinary), (max(LENGTHS),), generator=generator)]
    return tuple(Completion(ids[:length], torch.ones(length, dtype=torch.bool), "") for length in LENGTHS)


def _prompt(encoder: Encoder, images: Sequence[Image.Image]) -> Prompt:
    words = WORDS if images else _long(encoder)
    if encoder.texts.has_template:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": words}]
        record: dict[str, Any] = {"prompt": [{"role": "user", "content": content}]}
    else:
        record = {"prompt": f"{encoder.texts.placeholder * len(images)}{words}"}
    return encoder.prompt(read_row({**record, "images": list(images)}, 0))


def _long(encoder: Encoder) -> str:
    """The words as often as the prompt without images needs them."""
    window = encoder.facts.window or 0
    tokens = max(TEXT_TOKENS, window + 8 if window + 8 <= LONGEST else 0)
    each = len(encoder.tokenizer(WORDS, add_special_tokens=False)["input_ids"])
    return " ".join([WORDS] * -(-tokens // each))


def _processed(encoder: Encoder, prompt: Prompt) -> Mapping[str, Tensor]:
    """The processor's own path from a prompt to tensors, as transformers documents it."""
    processor: Any = encoder.processor
    images = [decode(image, where="a made-up row") for image in prompt.images]
    if not encoder.texts.has_template:
        return _tensors(processor(text=[prompt.row.prompt], images=[images] if images else None, return_tensors="pt"))
    waiting = iter(images)
    messages = [
        {
            **message,
            "content": [
                {"type": "image", "image": next(waiting)} if part["type"] == "image" else dict(part)
                for part in message["content"]
            ],
        }
        for message in prompt.row.prompt
        if not isinstance(message, str)
    ]
    return _tensors(
        processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            # Some models need these, and their processors wait to be asked.
            processor_kwargs={"return_mm_token_type_ids": True},
            **encoder.texts.chat_template_kwargs,
        )
    )


def _tensors(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in outputs.items() if not isinstance(value, str)}
