"""How each kind of model is sampled from, and that its log-probabilities are those of the model's own forward."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from boresight import verdicts
from boresight.data.encode import Encoder
from boresight.data.made_up import example_source
from boresight.errors import ModelError
from boresight.model.forward import GroupForward
from boresight.own_forward import own_logits, prompt_tensors
from boresight.rollout import choice
from boresight.rollout.branches import Branches
from boresight.rollout.decode import Prefill
from boresight.rollout.hf import HFSampler
from boresight.sampling import SamplingSettings
from tests.rollout.conftest import Subject

Subjects = Callable[[str], Subject]

WAYS = {
    "qwen2_5_vl": "branches",
    "gemma4_kv": "branches",  # layers that attend to another layer's keys
    "hunyuan_vl": "branches",  # four axes of positions
    "kimi_k25": "rows",  # latent attention keeps no keys
    "qwen3_5": "branches",  # a recurrent state, copied for each completion
    "mllama": "plain",  # an answer's mask over images
    # A cache that cannot be reordered, until transformers 5.24.
    "qwen4_exp": "plain" if Version(transformers.__version__) < Version("5.24") else "rows",
}


def sampler(it: Subject, **options: Any) -> HFSampler:
    source = example_source(Encoder(it.processor, facts=it.facts))
    return HFSampler(lambda: it.model, it.facts, it.processor.tokenizer, examples=source, **options)


@pytest.mark.parametrize("family", WAYS)
def test_every_kind_is_sampled_from_rightly(subject: Subjects, family: str, caplog: pytest.LogCaptureFixture) -> None:
    it = subject(family)
    ours = sampler(it)
    torch.manual_seed(3)
    with caplog.at_level(logging.WARNING):
        groups = ours.sample(it.prompts, SamplingSettings(3, 5))
        ours.sample(it.prompts[:1], SamplingSettings(1, 1))
    assert ours._sampling is not None and ours._sampling.way == WAYS[family]
    said = [record for record in caplog.records if "samples" in record.message]
    assert len(said) == (WAYS[family] != "branches")
    for group in groups:
        for completion in group.completions:
            with torch.no_grad():
                count = len(completion.ids) + 1
                logits = own_logits(it.model, prompt_tensors(group.prompt), completion.ids, num_last=count)[:-1].float()
            logits[:, list(it.facts.modality_ids)] = -torch.inf
            expected = logits.log_softmax(-1).gather(1, completion.ids[:, None])[:, 0]
            torch.testing.assert_close(completion.sampler_logp, expected, atol=1e-4, rtol=0)


def test_a_way_that_is_wrong_is_not_used(subject: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of completions one too far: branches and rows fail, and the model's own forward takes over."""
    it = subject("llava")
    monkeypatch.setattr(verdicts, "kept", lambda key: None)
    monkeypatch.setattr(verdicts, "keep", lambda key, result: None)
    own = Prefill.__call__

    def shifted(self: Any, *arguments: Any) -> Any:
        logits, position, cache = own(self, *arguments)
        return logits, position + 3, cache

    monkeypatch.setattr(Prefill, "__call__", shifted)
    ours = sampler(it)
    ours.sample(it.prompts[:1], SamplingSettings(2, 2, temperature=0.0))
    assert ours._sampling is not None and ours._sampling.way == "plain"
    assert "log-probabilities" in ours._sampling.reason


def test_rounding_does_not_hide_a_wrong_way(subject: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the bound of the model's own arithmetic, above that of float32."""
    it = subject("llava")
    source = example_source(Encoder(it.processor, facts=it.facts))
    model = copy.deepcopy(it.model).to(torch.bfloat16).eval()
    features = GroupForward(model, it.facts).image_outputs
    assert choice.choose_sampling(model, features, source, use_kept=False) == choice.Sampling("branches")
    own = Branches.step

    def a_little_off(self: Any, *arguments: Any) -> Any:
        logits = own(self, *arguments)
        return logits + 0.2 * (torch.arange(logits.shape[-1]) < 40)

    monkeypatch.setattr(Branches, "step", a_little_off)
    found = choice.choose_sampling(model, features, source, use_kept=False)
    assert found.way == "rows"
    assert "required: ≤ 1e-04" in found.reason


def test_no_way_at_all_is_an_error(subject: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    it = subject("llava")
    monkeypatch.setattr(verdicts, "kept", lambda key: None)
    monkeypatch.setattr(choice, "_expected", lambda prefill, example: torch.zeros(5))
    with pytest.raises(ModelError, match="cannot be sampled from"):
        sampler(it).sample(it.prompts[:1], SamplingSettings(2, 2))


def test_it_is_the_same_where_gradients_are_enabled(subject: Subjects) -> None:
    """As in a probe of the model, whose result later runs take over. The features were computed without gradients."""
    it = subject("qwen2_5_vl")
    source = example_source(Encoder(it.processor, facts=it.facts))
    forward = GroupForward(it.model, it.facts)
    with torch.enable_grad():
        found = choice.choose_sampling(it.model.eval(), forward.image_outputs, source, use_kept=False)
    assert found == choice.Sampling("branches")
