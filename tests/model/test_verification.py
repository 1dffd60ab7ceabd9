"""The layout that a model gets, and that it gives the model's own numbers, for one family of every kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from boresight import verdicts
from boresight.data.schema import read_row
from boresight.errors import ConfigError, DataError, ModelError
from boresight.model import layouts, verification, vision
from boresight.model.forward import GroupForward
from boresight.model.load import model_facts
from boresight.types import Group
from tests import AT_LEAST_5_20
from tests.model.conftest import Subjects, noise
from tests.model.oracle import oracle, ours, worst_gradient, worst_logp

BOUND = 1e-5
LAYOUTS: dict[str, tuple[str, bool, str]] = {
    "paligemma": ("shared", True, ""),  # its prompt attends in both directions
    "ernie4_5_vl_moe": ("shared", True, ""),  # experts by the type of a token
    "qwen2_5_omni_thinker": ("shared", True, ""),  # no base model
    "kimi_k25": ("shared", True, ""),  # latent attention
    "muse_glimmer": ("shared", True, ""),  # a multiplier under a cap
    "hunyuan_vl": ("shared", False, "zip"),  # features of all images in one row
    "ovis2": ("shared", False, "visual_indicator_features"),
    "minimax_m3_vl": ("shared", False, r"\|Δ log-prob\|"),  # neighbours change an image's features
    "gemma4_bi": ("shared", True, ""),  # blocks in sliding layers only
    "paligemma2": ("rows", True, "caps its attention scores"),
    "minicpmv4_7": ("shared", False, "shared fails with RuntimeError: The size"),
    "mllama": ("plain", True, "takes no image features"),
    "llama4": ("plain", True, "chunked_attention"),
}
if AT_LEAST_5_20:
    # Their image features can be joined there.
    LAYOUTS |= {"hunyuan_vl": ("shared", True, ""), "minimax_m3_vl": ("shared", True, "")}
    del LAYOUTS["llama4"]  # its own forward fails with images: an output class without `image_outputs`
"""Layout, whether features are joined, and what the reason mentions."""


def groups_of(it: Any, *, text: bool = True) -> list[Group]:
    counts = ((0, (4, 6)), (1, (6, 1, 9)), (2, (2, 7))) if text else ((1, (6, 1, 9)), (2, (2, 7)))
    return [it.group(it.prompt(images, seed=images), lengths, seed=images) for images, lengths in counts]


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_family_runs_in_a_layout_that_is_its_own_forward(subject: Subjects, family: str) -> None:
    layout, joins, reason = LAYOUTS[family]
    it = subject(family)
    model = it.model()
    run = GroupForward(model, it.facts, examples=it.examples)
    assert (run.layout, run.vision.joins) == (layout, joins)
    assert re.search(reason, run.verification.reason) if reason else run.verification.reason == ""
    groups = groups_of(it, text=not family.startswith("paligemma"))
    wanted = oracle(it, model, groups)
    found = ours(run, groups)
    assert worst_logp(found, wanted) <= BOUND
    assert worst_gradient(found, wanted) <= 10 * BOUND


def test_a_processor_that_puts_an_image_before_the_text_by_itself(subject: Subjects) -> None:
    """BLIP-2. Its forward would take the first of two images without a word, and fail without one."""
    it = subject("blip2")
    model, image, text = it.model(), noise((64, 96), 0), "Question: what color? Answer:"
    run = GroupForward(model, it.facts, examples=it.examples)
    assert run.layout == "plain" and "no image features" in run.verification.reason
    inputs = it.processor(images=image, text=text, return_tensors="pt")
    for prompt in (text, f"<image>{text}"):
        group = it.encoder.preference(
            read_row({"prompt": prompt, "chosen": " a red circle", "rejected": " no", "image": image}, 0)
        )
        assert group.prompt.ids.tolist() == inputs["input_ids"][0].tolist()
        assert group.prompt.token_types.tolist() == [1] * 4 + [0] * (len(group.prompt.ids) - 4)
        found = run([group])
        for row, completion in zip(found.logp, group.completions, strict=True):
            ids = torch.cat([inputs["input_ids"], completion.ids[None]], 1)
            logits = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -len(completion.ids) - 1 : -1]
            wanted = logits.log_softmax(-1).gather(-1, completion.ids[:, None])[:, 0]
            torch.testing.assert_close(row[: len(wanted)], wanted, atol=BOUND, rtol=0)
    for images in ([], [image, image]):
        with pytest.raises(DataError, match=rf"row 3: .*Blip2Processor.* one image .* has {len(images)} images"):
            it.encoder.prompt(read_row({"prompt": text, "images": images}, 3))
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    with pytest.raises(ModelError, match="no chat template"):
        it.encoder.prompt(read_row({"prompt": conversation, "image": image}, 0))


@pytest.mark.parametrize(("family", "layout"), [("paligemma2", "shared"), ("mllama", "rows")])
def test_a_layout_asked_for_by_name_is_verified_too(subject: Subjects, family: str, layout: str) -> None:
    it = subject(family)
    with pytest.raises(ConfigError, match=f"layout='{layout}' cannot"):
        GroupForward(it.model(), it.facts, layout=layout, examples=it.examples)


@pytest.mark.parametrize("layout", ["shared", "rows", "plain"])
def test_every_layout_by_name(subject: Subjects, layout: str) -> None:
    it = subject("llava")
    assert GroupForward(it.model(), it.facts, layout=layout, examples=it.examples).layout == layout


def adapted_in_bf16(it: Any) -> Any:
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(it.model(dtype=torch.bfloat16), adapter)


def test_in_bf16_under_an_adapter(subject: Subjects) -> None:
    it = subject("qwen2_5_vl")
    model = adapted_in_bf16(it)
    run = GroupForward(model, it.facts, examples=it.examples)
    assert run.layout == "shared"
    assert any("gradients" in check.name for check in run.verification.checks)
    assert all(weight.grad is None for weight in model.parameters())


def positions_are_counted(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right in every ordinary row, wrong where completions share one."""
    text = model.get_base_model().model.language_model
    own = text.forward
    text.forward = lambda *arguments, position_ids=None, **options: own(*arguments, **options)


def images_of_one_size_are_confused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "image_key", lambda images: tuple(image.size for image in images.images))


def branches_see_one_another(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in which all completions are one branch."""
    own = layouts.pack

    def packed(base: nn.Module, groups: Any) -> Any:
        row = own(base, groups)
        spans = [replace(span, branches=(sum(span.branches),)) for span in row.spans]
        return replace(row, spans=tuple(spans))

    monkeypatch.setattr(layouts, "pack", packed)


@pytest.mark.parametrize(
    ("family", "broken", "layout"),
    [
        ("qwen2_5_vl", positions_are_counted, ("rows", True)),
        ("qwen2_5_vl", images_of_one_size_are_confused, ("shared", False)),
        ("qwen2_5_vl", branches_see_one_another, ("rows", True)),
        # Below bf16's own rounding: 0.13 to 0.23 nats of one token.
        ("mistral3", branches_see_one_another, ("rows", True)),
    ],
)
def test_bf16_does_not_hide_a_wrong_layout(
    subject: Subjects,
    empty: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    broken: Callable[[Any, pytest.MonkeyPatch], None],
    layout: tuple[str, bool],
) -> None:
    it = subject(family)
    model = adapted_in_bf16(it)
    broken(model, monkeypatch)
    verified = GroupForward(model, it.facts, examples=it.examples).verification
    assert (verified.layout, verified.joins) == layout, verified
    assert re.search(r"shared, in float32: (mean )?\|Δ log-prob\||shared, in float32: relative Δ", verified.reason)


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen3_vl_moe", "emu3"])
def test_weights_of_16_bits_are_compared_in_float32(subject: Subjects, family: str) -> None:
    """Gradients of keys' biases are nothing but rounding; experts and normalisations demand tensors of one dtype."""
    it = subject(family)
    run = GroupForward(it.model(dtype=torch.bfloat16), it.facts, examples=it.examples)
    assert run.layout == "shared", run.verification
    found = {check.name: float(check.figure) for check in run.verification.checks if "shared, in float32" in check.name}
    values, gradients = found.values()
    assert values <= 2e-5
    assert gradients <= 2e-2


def test_too_little_memory_for_float32_is_no_fault(subject: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    it = subject("llava")
    own = verification.Oracle._check

    def full(self: verification.Oracle, name: str, *arguments: Any, **options: Any) -> Any:
        if "float32" in name:
            raise torch.OutOfMemoryError("full")
        return own(self, name, *arguments, **options)

    monkeypatch.setattr(verdicts, "key_of", lambda *parts: None)
    monkeypatch.setattr(verification.Oracle, "_check", full)
    run = GroupForward(it.model(dtype=torch.bfloat16), it.facts, examples=it.examples)
    assert run.layout == "shared"
    assert [check.name for check in run.verification.checks if check.name.startswith("shared:")] != []
    assert not any("float32" in check.name for check in run.verification.checks)


def test_a_model_that_insists_on_its_dtype_is_compared_in_that(
    subject: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = subject("llava")
    model = it.model(dtype=torch.bfloat16)
    text = model.model.language_model
    own = text.forward

    def insists(*arguments: Any, inputs_embeds: Tensor, **options: Any) -> Any:
        if inputs_embeds.dtype != torch.bfloat16:
            raise TypeError("bfloat16 only")
        return own(*arguments, inputs_embeds=inputs_embeds, **options)

    monkeypatch.setattr(text, "forward", insists)
    run = GroupForward(model, it.facts, examples=it.examples)
    assert run.layout == "shared"
    assert not any("float32" in check.name for check in run.verification.checks)


# ---- What is refused -----------------------------------------------------------------------------------------------------------------


def test_tokens_that_see_later_ones_are_refused(subject: Subjects) -> None:
    """A language model that is handed no mask: any two layouts may agree on its numbers, which learn to copy."""
    it = subject("gemma3")
    model = it.model()
    text = model.model.language_model
    for layer in text.layers:
        layer.self_attn.is_causal = False
    own, sees_all = text.forward, dict.fromkeys(("full_attention", "sliding_attention"))
    text.forward = lambda *arguments, attention_mask=None, **options: own(
        *arguments, attention_mask=sees_all, **options
    )
    with pytest.raises(ModelError, match="attend to later ones"):
        GroupForward(model, it.facts, examples=it.examples)


def test_an_encoder_decoder_is_refused(subject: Subjects) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    with pytest.raises(ModelError, match="encoder-decoder"):
        model_facts(T5ForConditionalGeneration(T5Config(**sizes)), subject("llava").processor)


# ---- Results that are kept ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place for results in which there are none."""
    monkeypatch.setattr(verdicts, "folder", lambda: tmp_path)
    monkeypatch.setattr(verdicts, "_known", {})
    return tmp_path


def test_a_model_is_verified_once(subject: Subjects, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = subject("llava")
    first = GroupForward(it.model(), it.facts, examples=it.examples).verification
    assert len(list(empty.glob("*.json"))) == 1
    calls: list[int] = []
    monkeypatch.setattr(verification.Oracle, "_measure", lambda self: calls.append(1))
    assert GroupForward(it.model(), it.facts, examples=it.examples).verification == first
    verdicts._known.clear()  # another process, which reads the file
    assert GroupForward(it.model(), it.facts, examples=it.examples).verification == first
    assert not calls


def test_what_a_result_depends_on(subject: Subjects) -> None:
    it, model = subject("llava"), subject("llava").model()
    key = verdicts.key_of(model, it.examples.key)
    assert key == verdicts.key_of(it.model(), it.examples.key)

    class Other(type(model)):
        pass

    frozen = it.model()
    frozen.model.vision_tower.requires_grad_(False)
    deeper = it.model()
    deeper.config.text_config.attention_dropout = 0.5
    others = [
        verdicts.key_of(it.model(dtype=torch.bfloat16), it.examples.key),
        verdicts.key_of(frozen, it.examples.key),
        verdicts.key_of(deeper, it.examples.key),
        verdicts.key_of(Other(model.config), it.examples.key),
        verdicts.key_of(get_peft_model(it.model(), LoraConfig(target_modules=["q_proj"])), it.examples.key),
        verdicts.key_of(model, subject("vipllava").examples.key),
    ]
    assert None not in others and len({key, *others}) == 7
    GroupForward(model, it.facts, layout="shared")  # which routes the model's attention
    assert verdicts.key_of(model, it.examples.key) == key


def test_a_model_that_was_altered_is_verified_every_time(subject: Subjects, empty: Path) -> None:
    it, model = subject("llava"), subject("llava").model()

    def bend(module: nn.Module, arguments: Any, output: Any) -> Any:
        output.logits = output.logits + torch.arange(output.logits.shape[-1]) / 100
        return output

    model.register_forward_hook(bend)
    run = GroupForward(model, it.facts, examples=it.examples)
    assert run.layout == "plain" and not list(empty.iterdir())
    groups = groups_of(it)
    assert worst_logp(ours(run, groups), oracle(it, model, groups)) <= BOUND
    with pytest.raises(ModelError, match="changes its logits in a way"):
        GroupForward(model, it.facts, layout="rows")


# ---- Kinds of fault ---------------------------------------------------------------------------------------------------------------------


def test_train_mode_changes_no_image(subject: Subjects) -> None:
    """Emu3's tower has BatchNorm: with a batch's statistics an image would have other codes in every pass."""
    it = subject("emu3")
    model = it.model()
    groups = groups_of(it)
    with torch.no_grad():
        wanted = GroupForward(model, it.facts)(groups).logp
        found = GroupForward(model.train(), it.facts)(groups).logp
    torch.testing.assert_close(found, wanted, atol=BOUND, rtol=0)
    assert any(isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)) for module in model.modules())


@pytest.mark.parametrize("layout", ["shared", "rows", "plain"])
def test_an_answer_does_not_see_its_own_future(subject: Subjects, layout: str) -> None:
    """PaliGemma, SFT on a conversation: the processor takes all of it for the prompt, whose tokens attend in both directions."""
    it = subject("paligemma")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what color?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]},
    ]
    row = read_row({"messages": messages, "images": [noise((64, 96), 0)]}, 0)
    group = it.encoder.demonstration(row, assistant_only=True)
    completion = group.completions[0]
    assert completion.token_types is not None and "token_type_ids" in completion.token_inputs
    changed, place = completion.ids.clone(), int(completion.mask.nonzero()[-1])
    changed[place] = (changed[place] + 1) % 100 + 5
    other = replace(group, completions=(replace(completion, ids=changed),))
    run = GroupForward(it.model(), it.facts, layout=layout)
    with torch.no_grad():
        one, two = run([group]).logp[0], run([other]).logp[0]
    assert place >= 3 and one[:place].abs().min() > 0
    torch.testing.assert_close(one[:place], two[:place], atol=BOUND, rtol=0)
    assert (one[place] - two[place]).abs() > 0.01
    reference = GroupForward(it.model(), it.facts, layout="plain")
    with torch.no_grad():
        torch.testing.assert_close(one, reference([group]).logp[0], atol=BOUND, rtol=0)
