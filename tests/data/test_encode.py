from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Idefics2ImageProcessor, Idefics2Processor

from boresight.data import Encoder, decode, read_row
from boresight.errors import DataError, ImageError, ModelError
from boresight.types import Group, Row
from tests.data.messages import assistant, user

FAMILIES = [
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava", "llava_next", "llava_onevision", "internvl",
    "gemma3",
]  # fmt: skip
Make = Callable[..., Encoder]


def noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 60).convert("RGB")


def with_images(row: Row) -> list[dict[str, Any]]:
    """The row's conversation with its images inside, as transformers' own chat door takes it."""
    images = iter(row.images)
    return [
        {
            **message,
            "content": [
                {"type": "image", "image": decode(next(images))} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in row.prompt
        if not isinstance(message, str)
    ]


def counted(group: Group, encoder: Encoder, place: int = 0) -> str:
    completion = group.completions[place]
    return encoder.tokenizer.decode(completion.ids[completion.mask])


def whole(group: Group) -> torch.Tensor:
    return torch.cat([group.prompt.ids, group.completions[0].ids])


class TestPrompt:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("sizes", [[], [(64, 64)], [(100, 60), (64, 128)]], ids=len)
    def test_equals_transformers_own_chat_door(self, family: str, sizes: list[tuple[int, int]], encoder: Make) -> None:
        encode = encoder(family)
        messages = [{"role": "system", "content": "be brief"}, user("what color is the shape?")]
        row = read_row({"prompt": messages, "images": [noise(*size) for size in sizes]}, 0)
        prompt = encode.prompt(row)
        expected = encode.processor.apply_chat_template(
            with_images(row), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        assert prompt.ids.tolist() == expected["input_ids"][0].tolist()
        tensors = {name: value for name, value in expected.items() if "ids" not in name and name != "attention_mask"}
        assert prompt.vision.keys() == tensors.keys()
        assert all(torch.equal(prompt.vision[name], value) for name, value in tensors.items())
        placeholders = prompt.ids == encode.facts.image_token_id
        assert bool(placeholders.any()) == bool(sizes)
        assert bool((prompt.token_types[placeholders] == 1).all())

    @pytest.mark.parametrize("family", FAMILIES)
    def test_unexpanded_ids_keep_one_placeholder_an_image(self, family: str, encoder: Make) -> None:
        encode = encoder(family)
        row = read_row({"prompt": [user("compare")], "images": [noise(50, 50), noise(70, 40)]}, 0)
        prompt = encode.prompt(row)
        mark = encode.tokenizer.convert_tokens_to_ids(encode.processor.image_token)
        assert prompt.unexpanded_ids.tolist().count(mark) == 2
        assert len(prompt.unexpanded_ids) < len(prompt.ids)

    @pytest.mark.parametrize("count", [0, 1, 2, 5])
    def test_counts_of_images(self, count: int, encoder: Make) -> None:
        row = read_row({"prompt": [user("look")], "images": [noise(40 + 16 * place, 48) for place in range(count)]}, 0)
        prompt = encoder().prompt(row)
        assert len(prompt.vision.get("image_grid_thw", [])) == count
        assert prompt.images == row.images

    @pytest.mark.parametrize("family", FAMILIES)
    def test_sizes_as_the_model_saw_them(self, family: str, encoder: Make) -> None:
        """They are what the tensors hold; processors that cut tiles have no single size to tell."""
        encode = encoder(family)
        prompt = encode.prompt(read_row({"prompt": [user("look")], "images": [noise(100, 60), noise(64, 128)]}, 0))
        if family.startswith("qwen"):
            patch = encode.processor.image_processor.patch_size
            sizes = encode.model_sizes(prompt)
            assert sum(w * h for w, h in sizes) == len(prompt.vision["pixel_values"]) * patch**2
            assert sizes[0][0] > sizes[0][1] and sizes[1][0] < sizes[1][1]
        elif family in ("llava", "gemma3"):
            assert encode.model_sizes(prompt) == [tuple(reversed(prompt.vision["pixel_values"].shape[2:]))] * 2
        elif family != "internvl":
            with pytest.raises(ModelError, match="cuts images into tiles"):
                encode.model_sizes(prompt)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_what_fits_is_exact(self, family: str, encoder: Make) -> None:
        """At the length of the longer answer, and not one token below."""
        said = {"chosen": [assistant("blue")], "rejected": [assistant("a very long answer of many words")]}
        row = read_row({"prompt": [user("look")], "images": [noise(100, 60), noise(64, 128)]} | said, 0)
        encode = encoder(family)
        group = encode.preference(row)
        longest = group.num_prompt_tokens + max(len(completion.ids) for completion in group.completions)
        assert [encode.fits(row, limit) for limit in (longest + 500, longest, longest - 1)] == [True, True, False]

    def test_real_questions(self, encoder: Make, questions: list[dict[str, Any]]) -> None:
        encode = encoder()
        prompts = [encode.prompt(read_row(question, place)) for place, question in enumerate(questions)]
        assert [prompt.row.columns["solution"] for prompt in prompts] == [row["solution"] for row in questions]
        assert len({prompt.vision["pixel_values"].sum().item() for prompt in prompts}) > 1

    def test_a_string_prompt_gets_its_placeholders_in_front(self, encoder: Make) -> None:
        encode = encoder()
        mark = "<|vision_start|><|image_pad|><|vision_end|>"
        images = [noise(48, 48), noise(64, 32)]
        bare = encode.prompt(read_row({"prompt": "compare", "images": images}, 0))
        written = encode.prompt(read_row({"prompt": f"{mark}{mark}compare", "images": images}, 0))
        apart = encode.prompt(read_row({"prompt": f"{mark}com{mark}pare", "images": images}, 0))
        assert bare.ids.tolist() == written.ids.tolist() != apart.ids.tolist()

    def test_a_prompt_may_end_with_the_start_of_the_answer(self, encoder: Make) -> None:
        encode = encoder()
        prompt = encode.prompt(read_row({"prompt": [user("what color?"), assistant("The color is")]}, 0))
        assert encode.tokenizer.decode(prompt.ids).endswith("<|im_start|>assistant\nThe color is")

    def test_chat_template_kwargs_of_the_encoder_and_the_row(self, encoder: Make) -> None:
        plain = encoder()
        plain.processor.chat_template += "{{ note | default('') }}"
        told = Encoder(plain.processor, facts=plain.facts, chat_template_kwargs={"note": "red"})
        record = {"prompt": [user("hello")]}
        texts = [
            encode.tokenizer.decode(encode.prompt(read_row(row, 0)).ids)
            for encode, row in [
                (plain, record),
                (told, record),
                (told, record | {"chat_template_kwargs": {"note": "blue"}}),
            ]
        ]
        assert [text.rpartition("\n")[2] for text in texts] == ["", "red", "blue"]

    def test_a_long_prompt_is_an_error_that_shows_the_ways_out(self, encoder: Make) -> None:
        row = read_row({"prompt": "what color?", "image": noise(64, 64)}, 12)
        length = len(encoder().prompt(row).ids)
        assert len(encoder(max_prompt_length=length).prompt(row).ids) == length
        with pytest.raises(DataError, match=rf"^row 12: the prompt has {length} tokens \(16 of .*max_pixels"):
            encoder(max_prompt_length=length - 1).prompt(row)

    def test_a_bare_tokenizer_reads_text(self, encoder: Make, tiny: Any) -> None:
        encode = encoder()
        tokenizer = AutoTokenizer.from_pretrained(tiny("qwen2_5_vl")[0])
        tokenizer.chat_template = encode.processor.chat_template
        bare = Encoder(tokenizer, facts=encode.facts)
        row = read_row({"messages": [user("what color?"), assistant("blue")]}, 0)
        assert torch.equal(whole(bare.demonstration(row)), whole(encode.demonstration(row)))
        with pytest.raises(ModelError, match="only a tokenizer was given"):
            bare.prompt(read_row({"prompt": [user("what color?")], "image": noise(32, 32)}, 0))

    def test_swapping_the_image_changes_the_tensors_alone(self, encoder: Make) -> None:
        encode = encoder()
        one, two = (encode.prompt(read_row({"prompt": "x", "image": noise(64, 64)}, 0)) for _ in range(2))
        assert torch.equal(one.ids, two.ids)
        assert not torch.equal(one.vision["pixel_values"], two.vision["pixel_values"])


MESSAGES = {
    "messages": [
        {"role": "system", "content": "be kind"},
        user("what color?"),
        assistant("blue it is"),
        user("sure?"),
        assistant("yes"),
    ]
}


class TestDemonstration:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_assistant_only_has_holes(self, family: str, encoder: Make) -> None:
        encode = encoder(family)
        row = read_row(MESSAGES | {"images": [noise(64, 64), noise(60, 90)]}, 0)
        group = encode.demonstration(row, assistant_only=True)
        end = encode.tokenizer.convert_ids_to_tokens(group.completions[0].ids[group.completions[0].mask][-1].item())
        assert counted(group, encode).replace(" ", "") == f"blueitis{end}yes{end}"
        assert not bool(group.completions[0].mask.all())
        assert bool(group.completions[0].mask[0])
        full = encode.demonstration(row)
        assert torch.equal(whole(group), whole(full))
        assert 1 <= len(full.prompt.ids) < len(group.prompt.ids)  # nothing predicts the first token
        assert group.prompt.vision.keys() == full.prompt.vision.keys() != set()

    @pytest.mark.parametrize("family", FAMILIES)
    def test_only_text_that_somebody_wrote_counts(self, family: str, encoder: Make) -> None:
        """Not one placeholder, mark, or label of a tile."""
        encode = encoder(family)
        sizes = [(64, 64), (60, 90)]
        with_images = encode.demonstration(read_row(MESSAGES | {"images": [noise(*size) for size in sizes]}, 0))
        text = counted(with_images, encode)
        assert "what color?" in text
        assert "blue it is" in text
        marks = [*encode.texts.reserved, "<row_"]
        assert not [mark for mark in marks if mark in text]

    def test_masks_equal_those_of_a_template_with_generation_marks(self, encoder: Make) -> None:
        """transformers' own assistant masks, which need the template edited, as the oracle."""
        encode = encoder()
        record = {
            "messages": [
                user([{"type": "text", "text": "one\n"}, {"type": "image"}, {"type": "text", "text": "two"}]),
                assistant("first\n\nanswer"),
                user([{"type": "image"}, {"type": "text", "text": "ünd?"}]),
                assistant(" second"),
            ],
            "images": [noise(80, 48), noise(32, 64)],
        }
        row = read_row(record, 0)
        marked = (
            "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
            "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
            "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'][0]['text'] }}<|im_end|>"
            "{% endgeneration %}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
            "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>"
            "{% endif %}{{ '\\n' }}{% endfor %}"
        )
        conversation = with_images(Row(0, row.completions[0], (), row.images, {}))
        oracle = encode.processor.apply_chat_template(
            conversation, chat_template=marked, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        group = encode.demonstration(row, assistant_only=True)
        mask = [0] * len(group.prompt.ids) + group.completions[0].mask.int().tolist()
        assert whole(group).tolist() == oracle["input_ids"][0]
        assert mask == list(oracle["assistant_masks"][0])
        assert sum(mask) > 5

    @pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "gemma3"])
    def test_prompt_and_completion_count_the_completion(self, family: str, encoder: Make) -> None:
        encode = encoder(family)
        record = {"prompt": [user("what color?")], "completion": [assistant("blue it is")], "image": noise(48, 48)}
        row = read_row(record, 0)
        group = encode.demonstration(row)
        assert torch.equal(group.prompt.ids, encode.prompt(row).ids)
        assert bool(group.completions[0].mask.all())
        assert group.completions[0].ids[-1].item() in encode.facts.stop_ids
        assert group.completions[0].text.strip() == "blue it is"

    def test_strings_get_the_end_token_once(self, encoder: Make) -> None:
        encode = encoder()
        for answer in ("blue", "blue<|im_end|>"):
            group = encode.demonstration(read_row({"prompt": "color?", "completion": answer}, 0))
            assert counted(group, encode) == "blue<|im_end|>"

    def test_a_template_without_end_tokens_still_teaches_to_stop(self, encoder: Make) -> None:
        encode = encoder("llava_next")
        encode.processor.chat_template = encode.processor.chat_template.replace("</s>", "")
        group = encode.demonstration(read_row({"prompt": [user("color?")], "completion": [assistant("blue")]}, 0))
        assert counted(group, encode).strip() == "blue</s>"

    def test_the_whole_text_counts_when_asked(self, encoder: Make) -> None:
        encode = encoder()
        row = read_row({"prompt": "color?", "completion": "blue", "image": noise(48, 48)}, 0)
        group = encode.demonstration(row, completion_only=False)
        assert counted(group, encode) == "color?blue<|im_end|>"

    def test_assistant_only_and_completion_only_leave_out_the_prompts_turns(self, encoder: Make) -> None:
        encode = encoder()
        record = {
            "prompt": [user("hello"), assistant("hi"), user("what color?")],
            "completion": [assistant("blue"), user("sure?"), assistant("yes")],
        }
        row = read_row(record, 0)
        end = "<|im_end|>"
        assert counted(encode.demonstration(row, assistant_only=True), encode) == f"blue{end}yes{end}"
        both = encode.demonstration(row, assistant_only=True, completion_only=False)
        assert counted(both, encode) == f"hi{end}blue{end}yes{end}"
        assert "sure?" in counted(encode.demonstration(row), encode)

    def test_a_completion_may_hold_an_image(self, encoder: Make) -> None:
        encode = encoder()
        record = {
            "prompt": [user([{"type": "image"}, {"type": "text", "text": "draw"}])],
            "completion": [
                assistant([{"type": "text", "text": "here:"}, {"type": "image"}, {"type": "text", "text": "!"}])
            ],
            "images": [noise(48, 48), noise(64, 32)],
        }
        group = encode.demonstration(read_row(record, 0))
        completion = group.completions[0]
        assert counted(group, encode) == "here:!<|im_end|>"
        assert completion.token_types is not None
        assert (
            int((completion.token_types == 1).sum()) == int((completion.ids == encode.facts.image_token_id).sum()) == 8
        )
        assert len(group.prompt.vision["image_grid_thw"]) == 2

    def test_a_processor_that_does_not_say_what_it_expanded(self, encoder: Make) -> None:
        """Idefics2's does not: its masks come from the processor run on prefixes."""
        other = encoder("idefics3")
        processor = Idefics2Processor(
            Idefics2ImageProcessor(do_image_splitting=False, size={"longest_edge": 56, "shortest_edge": 28}),
            other.tokenizer,
            image_seq_len=4,
            chat_template=other.processor.chat_template,
        )
        encode = Encoder(processor, facts=other.facts)
        group = encode.demonstration(read_row(MESSAGES | {"images": [noise(56, 42)] * 2}, 0), assistant_only=True)
        assert counted(group, encode) == " blue it is<end_of_utterance> yes<end_of_utterance>"

    def test_max_length_cuts_text_from_the_end_and_marks_it(self, encoder: Make) -> None:
        encode = encoder()
        row = read_row({"prompt": "color?", "completion": "it is a very dark blue", "image": noise(48, 48)}, 3)
        full = encode.demonstration(row)
        fitting = encode.demonstration(row, max_length=full.num_tokens)
        assert fitting.num_tokens == full.num_tokens and not fitting.completions[0].truncated
        short = encode.demonstration(row, max_length=full.num_tokens - 3)
        assert short.num_tokens == full.num_tokens - 3
        assert short.completions[0].ids.tolist() == full.completions[0].ids[:-3].tolist()
        assert short.completions[0].truncated
        with pytest.raises(DataError, match=r"row 3: .*nothing that counts would be left"):
            encode.demonstration(row, max_length=len(full.prompt.ids))

    def test_max_length_never_cuts_an_image(self, encoder: Make) -> None:
        encode = encoder()
        row = read_row(MESSAGES | {"image": noise(64, 64)}, 8)
        group = encode.demonstration(row)
        last = int((whole(group) == encode.facts.image_token_id).nonzero().max())
        assert encode.demonstration(row, max_length=last + 3).num_tokens == last + 3
        with pytest.raises(DataError, match=r"row 8: .*an image would be cut"):
            encode.demonstration(row, max_length=last)


class TestPreference:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_processor_sees_the_prompt_once(self, family: str, encoder: Make) -> None:
        encode = encoder(family)
        record = {
            "prompt": [user("what color?")],
            "chosen": [assistant("blue")],
            "rejected": [assistant("no idea, red")],
            "image": noise(64, 48),
        }
        row = read_row(record, 0)
        group = encode.preference(row)
        assert len(group) == 2
        assert torch.equal(group.prompt.ids, encode.prompt(row).ids)
        assert [completion.text.strip() for completion in group.completions] == ["blue", "no idea, red"]
        assert all(completion.ids[-1].item() in encode.facts.stop_ids for completion in group.completions)
        assert all(bool(completion.mask.all()) and completion.token_types is None for completion in group.completions)

    def test_what_the_user_says_inside_a_completion_does_not_count(self, encoder: Make) -> None:
        encode = encoder()
        record = {
            "prompt": [user("what color?")],
            "chosen": [assistant("blue"), user("sure?"), assistant("yes")],
            "rejected": [assistant("red")],
        }
        group = encode.preference(read_row(record, 0))
        assert counted(group, encode) == "blue<|im_end|>yes<|im_end|>"
        assert "sure?" in group.completions[0].text
        assert counted(group, encode, 1) == "red<|im_end|>"


class TestCount:
    @pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma3"])
    def test_equals_what_the_processor_makes(self, family: str, encoder: Make) -> None:
        encode = encoder(family)
        for images in ([], [noise(100, 60)]):
            prompt = read_row({"prompt": [user("what color?")], "images": images}, 0)
            assert encode.count_tokens(prompt) == len(encode.prompt(prompt).ids)
            messages = read_row(MESSAGES | {"images": images}, 0)
            assert encode.count_tokens(messages) == encode.demonstration(messages).num_tokens

    def test_nothing_is_decoded(self, encoder: Make) -> None:
        image = noise(64, 64)
        broken = read_row({"prompt": "x", "image": image}, 0).images[0]
        data = broken.source[: len(broken.source) // 2]
        row = read_row({"prompt": "x", "image": data}, 0)
        encode = encoder()
        assert encode.count_tokens(row) == len(encode.prompt(read_row({"prompt": "x", "image": image}, 0)).ids)
        with pytest.raises(ImageError, match="row 0, image 0: the image cannot be decoded"):
            encode.prompt(row)
