"""What users get wrong, and what they are told: the row, what is wrong with it, and the way out; all before the first step."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from boresight.data import Encoder, check_rows, read_row
from boresight.errors import DataError, ImageError
from tests.data.messages import IMAGE, assistant, text, user

SQUARE = Image.new("RGB", (64, 48), (10, 200, 30))
BROKEN = b"\x89PNG\r\n\x1a\n and nothing more"


ASK, BLUE, RED = [user("what color?")], [assistant("blue")], [assistant("red")]

READING: dict[str, tuple[dict[str, Any], type[DataError], list[str]]] = {
    # images
    "missing file": ({"prompt": ASK, "image": "no/such.png"}, ImageError, ["'no/such.png'", "No such file"]),
    "missing in a list": ({"prompt": ASK, "images": [SQUARE, None]}, ImageError, ["images[1]", "missing (None)"]),
    "broken": ({"prompt": ASK, "image": BROKEN}, ImageError, ["broken or of an unknown format"]),
    "broken inside a part": (
        {"prompt": [user([{"type": "image", "image": BROKEN}, text("?")])]}, ImageError, ["prompt[0].content[0]", "broken"],
    ),
    "a folder": ({"prompt": ASK, "image": "/"}, ImageError, ["'/' is a folder, not a file"]),
    "an address": ({"prompt": ASK, "image": "http://localhost/a.png"}, ImageError, ["Download the image first"]),
    "a number": ({"prompt": ASK, "image": 3}, ImageError, ["int is no image", "Give a PIL image"]),
    "both columns": ({"prompt": ASK, "image": SQUARE, "images": [SQUARE]}, ImageError, ["both 'image' and 'images'"]),
    "another name": ({"prompt": ASK, "photo": SQUARE}, ImageError, ["'photo' holds an image", "Rename"]),
    "a misspelt name": ({"prompt": ASK, "imags": ["a.png"]}, ImageError, ["'imags' holds an image"]),
    # placeholders
    "fewer images than parts": (
        {"prompt": [user([IMAGE, IMAGE, text("?")])], "images": [SQUARE]}, ImageError,
        ["1 image(s) in the image columns", "2 image part(s)"],
    ),
    "more images than parts": (
        {"prompt": [user([IMAGE, text("?")])], "images": [SQUARE, SQUARE]}, ImageError, ["2 image(s)", "1 image part(s)"],
    ),
    "parts and no images": ({"prompt": [user([IMAGE, text("?")])]}, ImageError, ["0 image(s)", "1 image part(s)"]),
    "images and nowhere to put them": (
        {"prompt": [user([text("?")])], "images": [SQUARE]}, ImageError, ["0 image part(s)", "Write <image> once for each image"],
    ),
    "more marks than images": (
        {"prompt": [user("<image>what <image>?")], "image": SQUARE}, ImageError, ["1 image(s)", "2 mark(s) <image>"],
    ),
    "marks in a string": ({"prompt": "<image>what <image>?", "image": SQUARE}, ImageError, ["2 mark(s) <image>", "1 image(s)"]),
    "a mark beside its part": (
        {"prompt": [user([IMAGE, text("<image>what?")])], "image": SQUARE}, ImageError, ["no image is left for it"],
    ),
    "a mark of a video": ({"prompt": [user("<video>what?")]}, DataError, ["<video>", "not supported"]),
    "an image by a number too high": (
        {"prompt": [user([{"type": "image", "index": 2}, text("?")])], "image": SQUARE}, ImageError, ["the index 2", "1 image(s)"],
    ),
    "a column of videos": ({"prompt": ASK, "videos": ["a.mp4"]}, DataError, ["'videos' holds video", "Drop the row"]),
    "a column of pictures": ({"prompt": ASK, "pics": ["missing.png"]}, ImageError, ["'pics' holds an image"]),
    "bytes that are no base64": ({"prompt": ASK, "image": "data:image/png;base64,???"}, ImageError, ["it is not base64"]),
    "no user of that name": ({"prompt": ASK, "image": "~nobody_here/x.png"}, ImageError, ["cannot be one"]),
    "a NUL in a path": ({"prompt": ASK, "image": "a\0b.png"}, ImageError, ["NUL"]),
    "half a character in a path": ({"prompt": ASK, "image": "\ud800.png"}, ImageError, ["cannot be one"]),
    "half a character in a text": ({"prompt": [user("a\ud800b")]}, DataError, ["lone surrogate"]),
    "keys that are no text": ({"prompt": [{1: "a"}]}, DataError, ["no 'role'"]),
    "an image of mixed keys": ({"prompt": ASK, "image": {1: 2, "a": 3}}, ImageError, ["a mapping with keys ['1', 'a']"]),
    "no pixels": ({"prompt": ASK, "image": Image.new("RGB", (0, 0))}, ImageError, ["no pixels"]),
    "an unknown speaker": ({"conversations": [{"from": "alien", "value": "hi"}]}, DataError, ["the speaker 'alien'", "Rename"]),
    "an image inside one of two completions": (
        {"prompt": ASK, "chosen": [assistant([IMAGE, text("x")])], "rejected": RED, "image": SQUARE}, ImageError,
        ["chosen has an image", "Only the prompt"],
    ),
    # columns
    "a wrong column": ({"promt": ASK, "solution": "4"}, DataError, ["its columns: promt, solution", "Did you mean 'prompt'"]),
    "no column": ({}, DataError, ["none of the columns", "its columns: none"]),
    "chosen alone": ({"prompt": ASK, "chosen": BLUE}, DataError, ["prompt, chosen", "prompt + chosen + rejected"]),
    "a misspelt partner": (
        {"prompt": ASK, "chosen": BLUE, "rejeted": RED}, DataError, ["'rejeted' is not read.", "Did you mean 'rejected'"],
    ),
    "two formats at once": ({"prompt": ASK, "messages": ASK + BLUE}, DataError, ["together messages, prompt"]),
    "a prompt of None": ({"prompt": None, "solution": "4"}, DataError, ["'prompt' is None."]),
    "a string and a conversation": (
        {"prompt": ASK, "completion": "blue"}, DataError, ["completion is a string and prompt is not", '"role": "assistant"'],
    ),
    "strings without a prompt": ({"chosen": "a", "rejected": "b"}, DataError, ["share no word at their start"]),
    "an empty string": ({"prompt": "  "}, DataError, ["the prompt is empty"]),
    # conversations
    "a number as conversation": ({"prompt": 7}, DataError, ["prompt: a int is neither a string nor a list"]),
    "no messages": ({"messages": []}, DataError, ["messages: the list of messages is empty"]),
    "a message of text": ({"messages": ["hi"]}, DataError, ["messages[0]: a message is a mapping"]),
    "a misspelt key": ({"messages": [{"rol": "user", "content": "hi"}]}, DataError, ["no 'role'", "Did you mean 'rol'"]),
    "an unknown role": ({"messages": [{"role": "usr", "content": "hi"}]}, DataError, ["'usr'", "Did you mean 'user'"]),
    "no content": ({"messages": [{"role": "user", "contents": "hi"}]}, DataError, ["no 'content'", "'contents'"]),
    "content of a number": ({"messages": [user(5)]}, DataError, ["neither a string nor a non-empty list"]),
    "no parts": ({"messages": [user([])]}, DataError, ["neither a string nor a non-empty list"]),
    "a part of text": ({"messages": [user(["hi"])]}, DataError, ["messages[0].content[0]: a content part is a mapping"]),
    "a part without type": ({"messages": [user([{"text": "hi"}])]}, DataError, ["the type None"]),
    "a misspelt part": ({"messages": [user([{"type": "img"}])]}, DataError, ["'img'", "Did you mean 'image'"]),
    "a text part without text": ({"messages": [user([{"type": "text"}])]}, DataError, ["no string under 'text'"]),
    "a video": ({"messages": [user([{"type": "video", "path": "a.mp4"}])]}, DataError, ["video is not supported"]),
    "OpenAI's part of another machine": (
        {"messages": [user([{"type": "image_url", "image_url": {"url": "https://x/a.png"}}])]}, ImageError, ["Download the image first"],
    ),
    "a prompt that only instructs": ({"prompt": [{"role": "system", "content": "x"}]}, DataError, ["nothing to answer"]),
    "a completion by the user": ({"prompt": ASK, "completion": ASK}, DataError, ["completion starts with", "'user'"]),
    "the prompt twice": (
        {"prompt": ASK, "chosen": ASK + BLUE, "rejected": ASK + RED}, DataError, ["chosen starts with", "drop the prompt column"],
    ),
    "nothing shared": ({"chosen": BLUE, "rejected": RED}, DataError, ["share no message"]),
    "no difference": ({"chosen": ASK + BLUE, "rejected": ASK + BLUE}, DataError, ["do not differ"]),
}  # fmt: skip


@pytest.mark.parametrize("case", READING)
def test_reading_names_the_row(case: str) -> None:
    record, kind, says = READING[case]
    with pytest.raises(kind) as error:
        read_row(record, 7)
    assert str(error.value).startswith("row 7")
    assert [piece for piece in says if piece not in str(error.value)] == []
    with pytest.raises(DataError, match="1 of 8 rows cannot be used:\nrow 7"):
        check_rows([{"prompt": "fine"}] * 7 + [record])


def _demonstration(encoder: Encoder, row: Any) -> object:
    return encoder.demonstration(row)


def _assistant_only(encoder: Encoder, row: Any) -> object:
    return encoder.demonstration(row, assistant_only=True)


def _completion_only(encoder: Encoder, row: Any) -> object:
    return encoder.demonstration(row, completion_only=True)


MARK = "<|vision_start|><|image_pad|><|vision_end|>"
Door = Callable[[Encoder, Any], object]
ENCODING: dict[str, tuple[Door, dict[str, Any], list[str]]] = {
    "a mark in the question": (Encoder.prompt, {"prompt": [user("is <|image_pad|> a word?")]}, ["'<|image_pad|>'", "Remove"]),
    "a mark in the answer": (
        _demonstration, {"prompt": ASK, "completion": [assistant("<|vision_start|>")]}, ["'<|vision_start|>'"],
    ),
    "a mark in messages": (_demonstration, {"messages": [*ASK, assistant("<|video_pad|>")]}, ["'<|video_pad|>'"]),
    "a mark in a string answer": (_demonstration, {"prompt": "x", "completion": "<|image_pad|>"}, ["'<|image_pad|>'"]),
    "a placeholder without its image": (Encoder.prompt, {"prompt": f"{MARK}what?"}, ["'<|image_pad|>'"]),
    "one placeholder, two images": (
        Encoder.prompt, {"prompt": f"{MARK}what?", "images": [SQUARE, SQUARE]}, [f"{MARK!r} 1 time(s) for 2 image(s)"],
    ),
    "half a placeholder": (Encoder.prompt, {"prompt": "<|image_pad|>what?", "image": SQUARE}, [f"{MARK!r} 0 time(s)"]),
    "another kind's placeholder": (Encoder.prompt, {"prompt": "<|video_pad|>what?", "image": SQUARE}, ["'<|video_pad|>'"]),
    "messages where a prompt is needed": (Encoder.prompt, {"messages": ASK + BLUE}, ["a prompt column is needed"]),
    "no completion": (_demonstration, {"prompt": ASK}, ["the row has 0 completions"]),
    "two completions": (_demonstration, {"prompt": ASK, "chosen": BLUE, "rejected": RED}, ["the row has 2 completions"]),
    "no pair": (Encoder.preference, {"prompt": ASK, "completion": BLUE}, ["needs the columns chosen and rejected"]),
    "no assistant": (_assistant_only, {"messages": ASK}, ["no assistant's turn", "drop the row"]),
    "assistant of strings": (_assistant_only, {"prompt": "x", "completion": "y"}, ["assistant_only_loss=True", "strings"]),
    "completion of messages": (
        _completion_only, {"messages": ASK + BLUE}, ["completion_only_loss=True", "assistant_only_loss=True"],
    ),
    "an image too narrow for the family": (
        Encoder.prompt, {"prompt": ASK, "image": Image.new("RGB", (2000, 2))}, ["the processor refuses it (images: 2000×2)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENCODING)
def test_encoding_names_the_row(case: str, encoder: Callable[..., Encoder]) -> None:
    door, record, says = ENCODING[case]
    with pytest.raises(DataError) as error:
        door(encoder(), read_row(record, 7))
    assert str(error.value).startswith("row 7")
    assert [piece for piece in says if piece not in str(error.value)] == []


@pytest.mark.parametrize("case", ["a mark in the question", "one placeholder, two images", "half a placeholder"])
def test_what_the_tokenizer_knows_is_found_before_training_too(case: str, encoder: Callable[..., Encoder]) -> None:
    with pytest.raises(DataError, match="1 of 2 rows cannot be used:\nrow 1"):
        check_rows([{"prompt": "fine"}, ENCODING[case][1]], check=encoder().count_tokens)


def test_a_template_that_refuses(encoder: Callable[..., Encoder]) -> None:
    encode = encoder()
    encode.processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="row 7: the chat template refuses the conversation: roles must alternate"):
        encode.prompt(read_row({"prompt": ASK}, 7))


def test_a_template_that_thinks_only_when_asked(encoder: Callable[..., Encoder]) -> None:
    encode = encoder()
    template = encode.processor.chat_template
    encode.processor.chat_template = template.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}"
    )
    assert encode.processor.chat_template != template
    with pytest.raises(DataError, match=r"row 7: the chat template renders the prompt differently.*enable_thinking"):
        encode.demonstration(read_row({"prompt": ASK, "completion": BLUE}, 7))


def test_no_template(encoder: Callable[..., Encoder]) -> None:
    encode = encoder()
    encode.processor.chat_template = None
    with pytest.raises(ValueError, match="row 7 is a conversation, but the processor has no chat template"):
        encode.prompt(read_row({"prompt": ASK}, 7))
    assert len(encode.prompt(read_row({"prompt": "plain", "image": SQUARE}, 7)).ids) > 10


def test_an_image_that_ends_early_is_named_by_the_worker(encoder: Callable[..., Encoder]) -> None:
    stream = BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(stream, format="JPEG")
    row = read_row({"prompt": ASK, "image": stream.getvalue()[:1500]}, 7)
    with pytest.raises(ImageError, match=r"row 7, image 0: the image cannot be decoded.*drop the row"):
        encoder().prompt(row)


@pytest.mark.parametrize(
    "failure", [StopIteration(), KeyError("pixel_values"), TypeError("no such argument"), ValueError("bad size")]
)
def test_whatever_a_processor_raises_names_the_row(
    encoder: Callable[..., Encoder], failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A StopIteration that escaped would end the loader: a run of no steps that reports success."""
    encode = encoder()

    def refuse(*_: Any, **__: Any) -> Any:
        raise failure

    monkeypatch.setattr(type(encode.processor), "__call__", refuse)
    with pytest.raises(DataError, match=rf"^row 7: the processor refuses it.*{type(failure).__name__}") as error:
        encode.prompt(read_row({"prompt": ASK, "image": SQUARE}, 7))
    assert error.value.__cause__ is failure
