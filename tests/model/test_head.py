from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    InklingForCausalLM,
    InklingTextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
)

from boresight.errors import ModelError
from boresight.model.forward import GroupForward
from boresight.model.head import Head, token_logp
from tests import AT_LEAST_5_20
from tests.model.conftest import Subjects

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
INKLING: dict[str, Any] = {
    "logits_mup_width_multiplier": 3.0,
    "layer_types": ["hybrid"],
    "mlp_layer_types": ["dense"],
    "d_rel": 4,
    "rel_extent": 16,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 1,
    "swa_head_dim": 8,
}
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], float, float | None]] = {
    "plain": (lambda: LlamaForCausalLM(LlamaConfig(**TINY)), 1.0, None),
    "scaled": (lambda: CohereForCausalLM(CohereConfig(**TINY, logit_scale=0.25)), 0.25, None),
    "divided": (lambda: GraniteForCausalLM(GraniteConfig(**TINY, logits_scaling=8.0)), 0.125, None),
    "multiplied": (lambda: HyperCLOVAXForCausalLM(HyperCLOVAXConfig(**TINY, logits_scaling=0.5)), 0.5, None),
    "soft-capped": (lambda: Gemma2ForCausalLM(Gemma2Config(**TINY, final_logit_softcapping=5.0)), 1.0, 5.0),
    # Inkling divides its hidden states, under a name of its own.
    "divided before": (lambda: InklingForCausalLM(InklingTextConfig(**TINY, **INKLING)), 1 / 3, None),
    # Two classes that drop what their text config says; PaliGemma did before transformers 5.20.
    "scale dropped": (lambda: AyaVisionForConditionalGeneration(aya()), 1.0, None),
    "cap dropped": (lambda: PaliGemmaForConditionalGeneration(paligemma()), 1.0, 5.0 if AT_LEAST_5_20 else None),
}


def aya() -> Any:
    text = {**TINY, "model_type": "cohere", "logit_scale": 0.25}
    return AyaVisionConfig(
        text_config=text, vision_config={**TOWER, "model_type": "siglip_vision_model"}, image_token_index=3
    )


def paligemma() -> Any:
    text = {**TINY, "model_type": "gemma2", "final_logit_softcapping": 5.0}
    tower = {**TOWER, "model_type": "siglip_vision_model", "projection_dim": 16}
    return PaliGemmaConfig(text_config=text, vision_config=tower, image_token_index=3, projection_dim=16)


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_says_what_its_model_says(kind: str) -> None:
    """Scaled, divided, multiplied, soft-capped, or only said to be: against the model's own forward."""
    build, scale, cap = MODELS[kind]
    torch.manual_seed(0)
    model: Any = build().eval()
    model.get_output_embeddings().weight.data.normal_()  # logits that a cap bends
    head = Head.of(model)
    assert (head.scale, head.soft_cap) == (pytest.approx(scale), cap)
    ids = torch.tensor([[5, 17, 40, 8]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    assert logits.abs().max() > 0.3
    torch.testing.assert_close(head.logits(hidden), logits, atol=1e-5, rtol=1e-5)
    assert not model.base_model._forward_hooks


def test_a_head_that_nothing_explains_is_refused() -> None:
    class Shifted(CohereForCausalLM):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            output: Any = super().forward(*arguments, **options)
            output.logits = output.logits + torch.arange(97.0)
            return output

    with pytest.raises(ModelError, match="Shifted changes its logits in a way"):
        Head.of(Shifted(CohereConfig(**TINY, logit_scale=0.25)))


# ---- Values --------------------------------------------------------------------------------------------------------------------------


def test_values_by_hand() -> None:
    """logits = (ln 1, ln 2, ln 5), and (ln 3, ln 2, ln 3) once the first is banned."""
    project = nn.Linear(2, 3, bias=False)
    project.weight.data = torch.tensor([[1.0, 3.0], [2.0, 2.0], [5.0, 3.0]]).log()
    hidden, targets = torch.eye(2), torch.tensor([1, 2])
    found = token_logp(Head(project), hidden, targets, entropy=True)
    torch.testing.assert_close(found.logp.exp(), torch.tensor([2 / 8, 3 / 8]))
    assert found.greedy is not None and found.greedy.tolist() == [False, False]  # a tie goes to the first
    torch.testing.assert_close(found.entropy, entropy_of([[1 / 8, 2 / 8, 5 / 8], [3 / 8, 2 / 8, 3 / 8]]))
    banned = token_logp(Head(project), hidden, targets, banned=torch.tensor([0]), entropy=True)
    torch.testing.assert_close(banned.logp.exp(), torch.tensor([2 / 7, 3 / 5]))
    torch.testing.assert_close(banned.entropy, entropy_of([[2 / 7, 5 / 7], [2 / 5, 3 / 5]]))
    assert banned.greedy is not None and banned.greedy.tolist() == [False, True]
    hot = token_logp(Head(project), hidden, targets, temperature=2.0)
    torch.testing.assert_close(hot.logp.exp()[0], torch.tensor(2**0.5 / (1 + 2**0.5 + 5**0.5)))
    assert hot.entropy is hot.greedy is None


def entropy_of(rows: list[list[float]]) -> Tensor:
    return torch.stack([-(torch.tensor(row) * torch.tensor(row).log()).sum() for row in rows])


def made_up(count: int, vocab: int, width: int = 12) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(width, vocab), torch.randn(count, width, requires_grad=True), torch.randint(vocab - 3, (count,))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"entropy": True},
    {"entropy": True, "entropy_grad": True},
    {"entropy": True, "entropy_grad": True, "banned": torch.tensor([29, 30]), "temperature": 1.7},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [{}, {"scale": 0.3}, {"soft_cap": 2.0}], ids=str)
def test_chunks_change_nothing(options: dict[str, Any], shape: dict[str, Any]) -> None:
    """Values and gradients, against the definition in float64."""
    project, hidden, targets = made_up(11, 31)
    head = Head(project, **shape)
    logits = head.logits(hidden).double() / options.get("temperature", 1.0)
    kept = torch.ones(31, dtype=torch.bool)
    kept[options.get("banned", [])] = False
    logp = logits.masked_fill(~kept, -torch.inf).log_softmax(-1)
    entropy = -(logp.exp() * logp.masked_fill(~kept, 0.0)).sum(-1)
    weight = torch.randn(2, 11, dtype=torch.double)
    chosen = logp.gather(-1, targets[:, None])[:, 0]
    loss = (weight[0] * chosen).sum() + (weight[1] * entropy).sum() * bool(options.get("entropy_grad"))
    expected = torch.autograd.grad(loss, [hidden, project.weight, project.bias])
    for limit in (10**9, 4 * 31 * 4, 4 * 31, 1):  # all at once; fours and a rest; ones; ones
        found = token_logp(head, hidden, targets, max_logit_bytes=limit, **options)
        torch.testing.assert_close(found.logp.double(), chosen, atol=1e-5, rtol=0)
        loss = (weight[0] * found.logp).sum()
        if found.entropy is not None:
            torch.testing.assert_close(found.entropy.double(), entropy, atol=1e-5, rtol=0)
            assert found.entropy.requires_grad == bool(options.get("entropy_grad"))
            assert torch.equal(found.greedy, logp.argmax(-1) == targets)  # pyright: ignore[reportArgumentType]
            loss = loss + (weight[1] * found.entropy).sum() if found.entropy.requires_grad else loss
        for one, other in zip(torch.autograd.grad(loss, [hidden, project.weight, project.bias]), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_entropy_is_its_closed_form() -> None:
    """∂H/∂z_j = −p_j (ln p_j + H)."""
    project, hidden, targets = made_up(5, 31)
    logits = project(hidden).detach().requires_grad_()
    identity = nn.Linear(31, 31, bias=False)
    identity.weight.data = torch.eye(31)
    found = token_logp(Head(identity), logits, targets, entropy=True, entropy_grad=True)
    assert found.entropy is not None
    (gradient,) = torch.autograd.grad(found.entropy.sum(), logits)
    p = logits.softmax(-1)
    torch.testing.assert_close(gradient, -p * (p.log() + found.entropy[:, None]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("limit", [10**9, 4 * 31 * 2])
def test_collision_is_the_log_of_the_sum_of_squares(limit: int) -> None:
    """At the sampler's temperature, banned ids left out, no gradient; in one chunk and in several."""
    project, hidden, targets = made_up(5, 31)
    banned = torch.tensor([3, 30])
    found = token_logp(
        Head(project), hidden, targets, temperature=0.7, banned=banned, collision=True, max_logit_bytes=limit
    )
    p = (project(hidden) / 0.7).index_fill(-1, banned, -torch.inf).softmax(-1)
    assert found.log_collision is not None and not found.log_collision.requires_grad
    torch.testing.assert_close(found.log_collision, p.square().sum(-1).log().detach(), atol=1e-5, rtol=0)
    assert found.entropy is None and found.greedy is None


@pytest.mark.parametrize("limit", [10**9, 4 * 31 * 2])
def test_adapters_on_the_head_learn(limit: int) -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    head, hidden, targets = Head.of(adapted.get_base_model()), torch.randn(7, 16), torch.arange(7)  # pyright: ignore[reportArgumentType]
    token_logp(head, hidden, targets, max_logit_bytes=limit).logp.sum().backward()
    ours = {name: weight.grad for name, weight in adapted.named_parameters() if weight.requires_grad}
    adapted.zero_grad()
    model.lm_head(hidden).log_softmax(-1).gather(-1, targets[:, None]).sum().backward()
    assert len(ours) == 2
    for name, weight in adapted.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(ours[name], weight.grad, atol=1e-5, rtol=1e-5)


def test_bf16_weights_give_float32_numbers() -> None:
    project, hidden, targets = made_up(5, 31)
    found = token_logp(Head(project.bfloat16()), hidden.bfloat16(), targets, entropy=True)
    assert found.logp.dtype == torch.float32 and found.entropy is not None and found.entropy.dtype == torch.float32


def test_no_token_at_all() -> None:
    project, hidden, targets = made_up(4, 31)
    assert token_logp(Head(project), hidden[:0], targets[:0]).logp.shape == (0,)


# ---- Memory --------------------------------------------------------------------------------------------------------------------------


class Rows(TorchDispatchMode):
    """The most rows of the vocabulary that any one tensor ever held, forward and backward."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.most = vocab, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.ndim and tensor.shape[-1] == self.vocab:
                self.most = max(self.most, tensor.numel() // self.vocab)
        return result


@pytest.mark.parametrize("layout", ["shared", "rows"])
def test_logits_of_all_tokens_never_exist(subject: Subjects, layout: str) -> None:
    """A vocabulary of 32,768 and 4 MiB for logits: 32 tokens at a time out of 101, and of several hundred in the row."""
    vocab = 32_768
    it = subject("qwen2_5_vl", vocab_size=vocab, hidden_size=16, num_heads=1, num_kv_heads=1)
    groups = [it.group(it.prompt(1), (40, 33)), it.group(it.prompt(2), (28,))]
    for limit, most in ((4 * 2**20, 32), (2**30, 101)):
        run = GroupForward(it.model(), it.facts, layout=layout, max_logit_bytes=limit)
        with Rows(vocab) as rows:
            run(groups, entropy=True, ban_modalities=True).logp.sum().backward()
        assert rows.most == most


MEASURE = """
import re, torch
from pathlib import Path
from boresight.model.head import Head, token_logp

def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

torch.manual_seed(0)
vocab, width, count = 32_768, 16, 512
head = Head(torch.nn.Linear(width, vocab, bias=False))
hidden, targets = torch.randn(count, width, requires_grad=True), torch.randint(vocab, (count,))
token_logp(head, hidden[:8], targets[:8], entropy=True, max_logit_bytes=2**18).logp.sum().backward()
for limit in (8 * 2**20, 2**30):
    before = peak_mib()
    token_logp(head, hidden, targets, entropy=True, max_logit_bytes=limit).logp.sum().backward()
    print(peak_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel keeps the peak there")
def test_peak_memory_is_that_of_a_chunk() -> None:
    """512 tokens of 32,768: one copy of their logits is 64 MiB, and chunks of 8 MiB never come near the several that there would be.

    glibc keeps freed blocks below 32 MiB in a heap with holes; the variable gives them back to the system, as it does with larger ones
    (the default chunk has 256 MiB).
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, env=environment)
    chunked, whole = map(float, done.stdout.split())
    assert chunked < 64
    assert whole > 160
