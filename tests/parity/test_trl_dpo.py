"""DPO on a tiny Qwen2.5-VL: loss of every pair and gradient of every parameter, TRL's trainer beside ours on the same tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset, Features, Image, Value
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from boresight import DPOConfig, DPOTrainer
from boresight.data.sources import RowDataset
from boresight.demo.easy_vqa import ANSWERS, load_easy_vqa
from boresight.demo.tiny import build_tiny
from boresight.report.metrics import MeanMetrics
from boresight.types import Completion, Group

LOSSES: dict[str, dict[str, Any]] = {
    "mpo without shift": {
        "loss_type": ["sigmoid", "bco_pair", "sft"],
        "loss_weights": [0.8, 0.2, 1.0],
        "bco_shift": "none",
    },
    "sigmoid": {"loss_type": ["sigmoid"]},
    "hinge": {"loss_type": ["hinge"]},
    "ipo": {"loss_type": ["ipo"]},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "exo_pair": {"loss_type": ["exo_pair"], "label_smoothing": 0.1},
    "nca_pair": {"loss_type": ["nca_pair"]},
    "sppo_hard": {"loss_type": ["sppo_hard"]},
    "apo_zero": {"loss_type": ["apo_zero"]},
    "apo_down": {"loss_type": ["apo_down"]},
    "discopop": {"loss_type": ["discopop"]},
    "sigmoid_norm": {"loss_type": ["sigmoid_norm"]},
    "aot": {"loss_type": ["aot"]},
    "aot_unpaired": {"loss_type": ["aot_unpaired"]},
    "long answers count less": {"loss_type": ["sigmoid"], "ld_alpha": 0.3},
    "weighted pairs": {"loss_type": ["sigmoid"], "use_weighting": True},
    "another divergence": {"loss_type": ["sigmoid"], "f_divergence_type": "js_divergence"},
}
COUPLED = ("aot", "aot_unpaired")
NUM_PAIRS = 4


@dataclass(frozen=True)
class Bench:
    """What both sides are given."""

    folder: Path
    policy: nn.Module
    reference: nn.Module
    rows: Dataset
    scratch: Path

    def theirs(self, options: dict[str, Any]) -> Any:
        given = {name: value for name, value in options.items() if name != "bco_shift"}
        args = trl.DPOConfig(
            output_dir=str(self.scratch / "trl"),
            per_device_train_batch_size=NUM_PAIRS,
            max_length=None,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **given,
        )
        return trl.DPOTrainer(
            copy.deepcopy(self.policy),  # pyright: ignore[reportArgumentType]
            copy.deepcopy(self.reference),  # pyright: ignore[reportArgumentType]
            args,
            train_dataset=self.rows,
            processing_class=AutoProcessor.from_pretrained(self.folder),
        )

    def ours(self, options: dict[str, Any]) -> DPOTrainer:
        args = DPOConfig(
            output_dir=str(self.scratch / "ours"),
            per_device_train_batch_size=NUM_PAIRS,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            **options,
        )
        return DPOTrainer(
            copy.deepcopy(self.policy),
            copy.deepcopy(self.reference),
            args,
            train_dataset=self.rows,
            processing_class=AutoProcessor.from_pretrained(self.folder),
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A policy that has moved away from its reference, and real questions. Chosen answers are of equal length, rejected ones are not."""
    folder = build_tiny("qwen2_5_vl", tmp_path_factory.mktemp("model"), vocab_size=512)
    policy, reference = (AutoModelForImageTextToText.from_pretrained(folder) for _ in range(2))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    rows = []
    for index, row in enumerate(load_easy_vqa("train", num_rows=60, seed=1).filter(lambda row: row["kind"] == "color")):
        wrong = ANSWERS["color"][index % 8]
        said = {"chosen": row["solution"] + " !", "rejected": " ".join([wrong] * (1 + index % 3))}
        rows.append(
            {"prompt": [{"role": "user", "content": row["prompt"][0]["content"][1]["text"]}], "image": row["image"]}
        )
        rows[-1] |= {name: [{"role": "assistant", "content": text}] for name, text in said.items()}
    message = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"prompt": message, "image": Image(), "chosen": message, "rejected": message})
    return Bench(
        folder,
        policy,
        reference,
        Dataset.from_list(rows[:NUM_PAIRS], features=features),
        tmp_path_factory.mktemp("runs"),
    )


def their_groups(batch: dict[str, Tensor], ours: DPOTrainer) -> list[Group]:
    """TRL's tokens as our groups: all chosen come before all rejected there."""
    rows = RowDataset(ours.train_dataset)
    prompts = [ours.encoder.prompt(rows[index]) for index in range(NUM_PAIRS)]
    counted = batch["completion_mask"].bool()
    groups = []
    for index, prompt in enumerate(prompts):
        completions = []
        for place in (index, NUM_PAIRS + index):
            ids = batch["input_ids"][place][counted[place]]
            before = batch["attention_mask"][place].bool() & ~counted[place]
            assert torch.equal(batch["input_ids"][place][before], prompt.ids)
            completions.append(Completion(ids, torch.ones_like(ids, dtype=torch.bool), ""))
        groups.append(Group(prompt, tuple(completions)))
    return groups


def one_pair(batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """A batch of one pair out of TRL's. An image of 64×64 makes equally many patches in every row."""
    picked = {}
    for name, tensor in batch.items():
        share = len(tensor) // (2 * NUM_PAIRS)
        picked[name] = tensor.unflatten(0, (2 * NUM_PAIRS, share))[[index, NUM_PAIRS + index]].flatten(0, 1)
    return picked


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_trls(bench: Bench, name: str) -> None:
    options = LOSSES[name]
    theirs, ours = bench.theirs(options), bench.ours(options)
    batch = dict(theirs.data_collator([dict(row) for row in theirs.train_dataset]))
    groups = their_groups(batch, ours)
    policy = ours.policy.model.train()
    theirs.model.train()

    if name not in COUPLED:
        for index, group in enumerate(groups):
            expected = theirs.compute_loss(theirs.model, one_pair(batch, index))
            found = ours.loss(policy, ours.prepare([group]), torch.tensor(1.0), MeanMetrics())
            assert float(found) == pytest.approx(float(expected), abs=2e-5, rel=1e-5)

    expected = theirs.compute_loss(theirs.model, batch)
    found = ours.loss(policy, ours.prepare(groups), torch.tensor(float(NUM_PAIRS)), MeanMetrics())
    assert float(found) == pytest.approx(float(expected), abs=2e-5, rel=1e-5)
    expected.backward()
    found.backward()
    wanted = {key: value.grad for key, value in theirs.model.named_parameters() if value.grad is not None}
    gradients = {key: value.grad for key, value in policy.named_parameters() if value.grad is not None}
    assert gradients.keys() == wanted.keys()
    typical = torch.stack([gradient.norm() for gradient in wanted.values()]).median()
    for key, gradient in wanted.items():
        assert (gradients[key] - gradient).norm() <= 1e-4 * max(gradient.norm(), 1e-3 * typical), key


def test_the_shift_is_what_trl_lost(bench: Bench) -> None:
    """Negative control: with a shift, MPO's loss is another one."""
    options = LOSSES["mpo without shift"] | {"bco_shift": "running"}
    ours = bench.ours(options)
    pairs = ours.prepare([ours.encode(row) for row in [RowDataset(ours.train_dataset)[0]]])
    without = float(ours.loss(ours.policy.model, pairs, torch.tensor(1.0), MeanMetrics()))
    ours.shift.update(0.5, 1.0)
    assert float(ours.loss(ours.policy.model, pairs, torch.tensor(1.0), MeanMetrics())) != pytest.approx(
        without, abs=1e-3
    )
