"""The model's own forward: what a completion of any length adds to a prompt's tensors."""

from __future__ import annotations

import pytest
import torch
from transformers.utils import ModelOutput

from boresight.modules import matching_arguments
from boresight.own_forward import continued_token_inputs, is_token_input, prompt_tensors
from tests.model.conftest import Subjects

LENGTH = 40
"""More tokens than the prompt has after its last image."""


@pytest.mark.parametrize("family", ["gemma3", "paligemma", "mllama", "qwen2_5_vl"])
def test_token_inputs_continue_as_in_generation(subject: Subjects, family: str) -> None:
    """Token by token, as `generate` continues them."""
    it = subject(family)
    model = it.model()
    tensors = matching_arguments(model.forward, prompt_tensors(it.prompt(1)))
    length = tensors["input_ids"].shape[1]
    tokens = {
        name: value
        for name, value in tensors.items()
        if is_token_input(value, length) and name not in ("input_ids", "attention_mask")
    }
    assert tokens
    grown = dict(tokens)
    for _ in range(LENGTH):
        grown = model._update_model_kwargs_for_generation(ModelOutput(), grown, False)
    found = continued_token_inputs(model, tokens, LENGTH)
    for name in tokens:
        wanted = grown[name]
        if wanted.shape[1] == length:  # not mentioned there: text
            wanted = torch.cat([wanted, wanted.new_zeros(1, LENGTH)], 1)
        assert torch.equal(found[name], wanted), name
        assert found[name].shape[1] == length + LENGTH
