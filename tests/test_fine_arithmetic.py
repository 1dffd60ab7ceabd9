"""Arithmetic in float32 on weights of 16 bits, beside the same weights converted beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from boresight.fine_arithmetic import FineArithmetic

HALVES = (torch.bfloat16, torch.float16)


class Block(nn.Module):
    """What models do with weights and dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.convolution = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.query = nn.Linear(6, 6)
        self.experts = nn.Parameter(torch.randn(2, 6, 6) / 3)
        self.head = nn.Linear(6, 11, bias=False)

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = torch.where((ids == 3)[..., None], image.to(self.head.weight.dtype), x)
        x = self.norm(self.convolution(x.transpose(1, 2)).transpose(1, 2))
        buffer = torch.zeros(x.shape, dtype=self.head.weight.dtype)
        buffer[:, 1:] = x[:, :1]
        q = self.query(x).to(self.head.weight.dtype)
        x = x + nn.functional.scaled_dot_product_attention(q, q, x.type_as(self.head.weight)) + buffer
        x = torch.matmul(x, self.experts[0]) + torch.bmm(x, self.experts[1].expand(len(x), 6, 6))
        return self.head(x)


def results(model: nn.Module, ids: Tensor, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(ids, image)
    (logits.float().log_softmax(-1) * torch.linspace(-1, 2, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return torch.randint(11, (2, 5)), torch.randn(2, 5, 6).bfloat16().float()


@pytest.mark.parametrize("dtype", HALVES)
def test_numbers_are_those_of_converted_weights(dtype: torch.dtype, inputs: tuple[Tensor, Tensor]) -> None:
    coarse = Block().to(dtype)
    converted = Block()
    converted.load_state_dict({name: weight.float() for name, weight in coarse.state_dict().items()})
    wanted, gradients = results(converted, *inputs)
    with FineArithmetic():
        found, own = results(coarse, *inputs)
    assert found.dtype == torch.float32
    # A value that is written into a tensor of 16 bits is rounded there, so not to the last bit.
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
    assert own.keys() == gradients.keys() == dict(coarse.named_parameters()).keys()
    for name, gradient in own.items():
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient.float(), gradients[name], atol=0.01 * gradients[name].norm().item(), rtol=0)
    rounded, _ = results(coarse, *inputs)
    assert (rounded.float() - wanted).abs().max() > 3 * (found - wanted).abs().max()


def test_weights_in_float32_are_not_touched(inputs: tuple[Tensor, Tensor]) -> None:
    model = Block()
    wanted, gradients = results(model, *inputs)
    with FineArithmetic():
        found, own = results(model, *inputs)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, gradients[name], atol=1e-5, rtol=1e-5)


def test_a_weight_is_kept_in_16_bits_for_the_backward_pass() -> None:
    """A model of 16 bits would otherwise need three times its memory."""
    layer = nn.Linear(8, 4).bfloat16()
    kept: list[torch.dtype] = []
    x = torch.randn(3, 8, requires_grad=True)
    with FineArithmetic(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        layer(x)
    assert kept == [torch.float32, torch.bfloat16]


def test_other_errors_are_not_hidden() -> None:
    with FineArithmetic(), pytest.raises(RuntimeError, match="size of tensor"):
        torch.randn(2).bfloat16() + torch.randn(3)
    with FineArithmetic(), pytest.raises(RuntimeError):
        torch.cat([torch.randn(2, 3), torch.randn(2, 2, 3)])
