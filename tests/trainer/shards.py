"""Trains a few steps of each method and saves the models: alone, or as torchrun does on two ranks whose weights FSDP2 divides."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch` sets for the configuration `fsdp2`."""
FSDP2_LAYERS = {**FSDP2, "FSDP_RESHARD_AFTER_FORWARD": "true"}
"""Of `fsdp2_layers`."""
if "WORLD_SIZE" in os.environ and "WHOLE_WEIGHTS" not in os.environ:
    os.environ.update(FSDP2_LAYERS if "BY_LAYERS" in os.environ else FSDP2)

import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from accelerate.utils import gather_object  # noqa: E402
from peft import LoraConfig  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402

from boresight import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402
from boresight.loss.preference_options import MPO  # noqa: E402
from boresight.model import export  # noqa: E402
from boresight.model.export import PolicyWeights  # noqa: E402
from boresight.model.shards import gathered  # noqa: E402
from boresight.modules import unwrap  # noqa: E402

from .conftest import QUIET, demonstrations, records, vowel_share  # noqa: E402
from .test_dpo import preferences  # noqa: E402

RANKS = int(os.environ.get("WORLD_SIZE", "1"))
COMMON: dict[str, Any] = {**QUIET, "use_cpu": True, "max_steps": 3, "optim": "sgd", "learning_rate": 0.05}
"""SGD, because Adam's first steps blow a difference of rounding up to a whole step where a gradient is nearly 0."""
GROUPS: dict[str, Any] = {"num_generations": 4, "max_completion_length": 6, "beta": 0.1}


def lora() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights="gaussian")


def images_on_the_first_rank_alone() -> list[dict[str, Any]]:
    """16 rows; of each 8, the first 4 have images. Two ranks with 4 rows of a step each: one of them reads only text."""
    rows = demonstrations(32)
    with_image = [row for row in rows if row["image"] is not None]
    without = [row for row in rows if row["image"] is None]
    return [*with_image[:4], *without[:4], *with_image[4:8], *without[4:8]]


def sft(model: Any, folder: str, rows: Any = None, **options: Any) -> Any:
    own = {name: options.pop(name, None) for name in ("peft_config", "processing_class")}
    batch = {"per_device_train_batch_size": 4 // RANKS, "gradient_accumulation_steps": 2}
    config = SFTConfig(**{**COMMON, **batch, **options}, output_dir=folder)
    return SFTTrainer(model, config, demonstrations(24) if rows is None else rows, **own)


def dpo(model: str, folder: str, **options: Any) -> Any:
    adapter = options.pop("peft_config", None)
    batch = {"per_device_train_batch_size": 4 // RANKS, "gradient_accumulation_steps": 1}
    config = DPOConfig(**{**COMMON, **batch, **options}, output_dir=folder)
    return DPOTrainer(model, args=config, train_dataset=preferences(), peft_config=adapter)


def grpo(model: str, folder: str, **options: Any) -> Any:
    adapter = options.pop("peft_config", None)
    config = GRPOConfig(**{**COMMON, **GROUPS, "num_prompts_per_step": 4, **options}, output_dir=folder)
    held_out = records(14)[-2:] if config.eval_strategy != "no" else None
    return GRPOTrainer(model, vowel_share, config, records(12), held_out, peft_config=adapter)


GSPO: dict[str, Any] = {"importance_sampling_level": "sequence", "beta": 0.0, "num_iterations": 2}
EXACT: dict[str, Any] = {
    "model_init_kwargs": {"dtype": "float64"},
    "learning_rate": 1.0,
    "max_grad_norm": 0.0,
    "max_steps": 1,
    "lr_scheduler_type": "constant",
}
"""One step of SGD at a rate of 1 in float64: weights differ by what gradients differ."""
UNCORRECTED: dict[str, Any] = {"beta": 0.0, "vllm_importance_sampling_correction": False}
"""Without the correction by the sampler's log-probabilities, which are float32: their rounding depends on the batch."""
PASSES: dict[str, Any] = {
    "num_iterations": 2,
    "top_entropy_quantile": 0.5,
    "max_tokens_per_pass": 60,
    "verdict_steps": 1,
    "eval_strategy": "steps",
    "eval_steps": 2,
}
UNEVEN: dict[str, Any] = {
    "rows": images_on_the_first_rank_alone()[:11],
    "shuffle_dataset": False,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8 // RANKS,
    "gradient_checkpointing": True,
    "max_steps": 4,
}
CASES: dict[str, Any] = {
    "sft-64": lambda model, folder: sft(model, folder, **EXACT),
    "grpo-64": lambda model, folder: grpo(model, folder, **EXACT, **UNCORRECTED),
    "sft": lambda model, folder: sft(model, folder, max_grad_norm=0.1, gradient_checkpointing=True),
    "sft-lora": lambda model, folder: sft(model, folder, peft_config=lora(), learning_rate=0.5),
    "text-only": lambda model, folder: sft(
        model,
        folder,
        images_on_the_first_rank_alone(),
        shuffle_dataset=False,
        max_steps=2,
        per_device_train_batch_size=8 // RANKS,
        gradient_accumulation_steps=1,
    ),
    "dpo": dpo,
    "dpo-lora": lambda model, folder: dpo(model, folder, peft_config=lora(), learning_rate=0.5),
    "mpo": lambda model, folder: dpo(model, folder, **MPO),
    "precomputed": lambda model, folder: dpo(model, folder, precompute_ref_log_probs=True),
    "follows": lambda model, folder: dpo(model, folder, sync_ref_model=True, ref_model_sync_steps=1),
    "grpo": lambda model, folder: grpo(model, folder, verdict_steps=1),
    "grpo-lora": lambda model, folder: grpo(model, folder, peft_config=lora()),
    "gspo": lambda model, folder: grpo(model, folder, **GSPO),
    "gspo-lora": lambda model, folder: grpo(model, folder, **GSPO, peft_config=lora()),
    "parts": lambda model, folder: sft(
        model, folder, train="vision=full,projector=frozen,language=lora", peft_config=lora()
    ),
    "cut": lambda model, folder: sft(model, folder, max_tokens_per_pass=60),
    # By layers: one rank reads only text, then has fewer micro-batches; weights without a gradient.
    "uneven": lambda model, folder: partly_used(model, folder, **UNEVEN),
    "uneven-bf16": lambda model, folder: partly_used(model, folder, **UNEVEN, bf16=True),
    "uneven-bf16-as-fsdp2": lambda model, folder: as_fsdp2(partly_used(model, folder, **UNEVEN, bf16=True)),
    # Passes of the old policy, of a reference that is a copy, of entropies, of swapped images, and of an evaluation.
    "passes": lambda model, folder: grpo(model, folder, **PASSES),
    "passes-lora": lambda model, folder: grpo(model, folder, **PASSES, peft_config=lora(), gradient_checkpointing=True),
    "as-fsdp2": lambda model, folder: as_fsdp2(sft(model, folder, max_steps=1)),
}


def run(case: str, model: str, folder: Path) -> dict[str, Any]:
    """Train a case; returns what the first rank measured."""
    trainer = CASES[case](model, str(folder / "run"))
    probe = LayersProbe(trainer)
    trainer.train()
    weights = [*trainer.model.parameters()]
    held = sum(getattr(weight, "_local_tensor", weight).nbytes for weight in weights)
    trainer.save_model(str(folder / "model"))
    found = {"log": trainer.state.log_history, "share": held / sum(weight.nbytes for weight in weights)}
    repeats = sum(gather_object([probe.repeats]))
    return found | {"whole": probe.whole, "whole_gradients": probe.gradients, "repeats": repeats}


class LayersProbe:
    """Measures how much of the decoder's layers a rank holds whole, before and after each layer, in forward and backward passes."""

    def __init__(self, trainer: Any) -> None:
        self.layers = [*unwrap(trainer.model).get_decoder().layers]
        self.whole = self.gradients = 0.0
        """The most layers whose weights, and whose gradients, were whole at once, by bytes."""
        self.repeats = 0
        """Micro-batches that were repeated because other ranks had more."""
        repeat = trainer.repeat

        def counted(*arguments: Any) -> None:
            self.repeats += 1
            repeat(*arguments)

        trainer.repeat = counted
        if trainer.is_fsdp_enabled:
            for layer in self.layers:
                layer.mlp.register_forward_pre_hook(lambda *_: self.measure())
                layer.mlp.register_forward_hook(lambda _module, _inputs, output: self.watch(output))

    def watch(self, output: torch.Tensor) -> None:
        self.measure()
        if output.requires_grad:
            output.register_hook(lambda _: self.measure())

    def measure(self) -> None:
        weights = gradients = total = 0
        for layer in self.layers:
            for weight in layer._get_fsdp_state()._fsdp_param_group.fsdp_params:
                total += weight._orig_size.numel() * weight.orig_dtype.itemsize
                own = getattr(weight, "_unsharded_param", None)
                if own is not None:
                    weights += own.untyped_storage().nbytes()
                    gradients += sum(
                        each.nbytes for each in (own.grad, weight.unsharded_accumulated_grad) if each is not None
                    )
        self.whole = max(self.whole, weights / total * len(self.layers))
        self.gradients = max(self.gradients, gradients / total * len(self.layers))


def as_fsdp2(trainer: Any) -> Any:
    """A trainer that gathers the whole weights for a step."""
    trainer.by_layers = False
    return trainer


def partly_used(model: str, folder: str, **options: Any) -> Any:
    """SFT of a model whose layers have a weight that rows of even length do not use, as they may not use an expert."""
    loaded = AutoModelForImageTextToText.from_pretrained(model)
    layers: Any = unwrap(loaded).get_decoder().layers
    for layer in layers:
        layer.expert = torch.nn.Parameter(torch.zeros(3))
    trainer = sft(loaded, folder, **options)  # layouts, which pack rows, are verified without it
    for layer in layers:
        layer.mlp.register_forward_hook(
            lambda _module, _inputs, output, layer=layer: (
                output * (1 + layer.expert.sum()) if output.shape[1] % 2 else output
            )
        )
    return trainer


KEPT: dict[str, Any] = {
    name: {
        "max_steps": 4,
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-3,
        "save_strategy": "steps",
        **kind,
    }
    for name, kind in {"full": {}, "lora": {"peft_config": lora()}}.items()
}


def resumed(model: str, folder: Path) -> None:
    """Four steps; and two steps, saved, and two more from there."""
    for name, kind in (("full", {}), ("lora", {"peft_config": lora()})):
        options: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 1e-3, "save_strategy": "steps", **kind}
        sft(model, str(folder / name / "run"), max_steps=4, save_steps=2, **options).train()
        trainer = sft(model, str(folder / name / "run"), max_steps=4, save_steps=10, **options)
        uninterrupted = folder / name / "run" / "checkpoint-4"
        if PartialState().is_main_process:
            uninterrupted.rename(folder / name / "uninterrupted")
        PartialState().wait_for_everyone()
        trainer.train(resume_from_checkpoint=True)
        trainer.save_model(str(folder / name / "resumed"))


def kept_as_shards(model: str, folder: Path) -> None:
    """Four steps with checkpoints of shards; and two more from the second."""
    os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT"
    for name, kind in KEPT.items():
        trainer = sft(model, str(folder / name / "run"), **kind)
        trainer.train()
        trainer.save_model(str(folder / name / "uninterrupted"))
        trainer = sft(model, str(folder / name / "run"), **kind)
        trainer.train(resume_from_checkpoint=str(folder / name / "run" / "checkpoint-2"))
        trainer.save_model(str(folder / name / "resumed"))
    os.environ["FSDP_STATE_DICT_TYPE"] = FSDP2["FSDP_STATE_DICT_TYPE"]


def continued(model: str, folder: Path, until: int) -> None:
    """GRPO, whose rollouts serve two steps, and MPO, whose shift is a mean over steps: up to a step, from where the last run ended."""
    common: dict[str, Any] = {"save_strategy": "steps", "save_steps": until, "max_steps": until, "optim": "adamw_torch"}
    common |= {"lr_scheduler_type": "constant", "learning_rate": 1e-3, "adam_epsilon": 1e-3, "logging_steps": 1}
    for name, trainer in (
        ("grpo", grpo(model, str(folder / "grpo"), **common, steps_per_generation=2)),
        ("mpo", dpo(model, str(folder / "mpo"), **common, **MPO)),
    ):
        trainer.train(resume_from_checkpoint=(folder / name).exists() and any((folder / name).glob("checkpoint-*")))
        if PartialState().is_main_process:
            torch.save(trainer.state.log_history, folder / f"{name}.pt")


def sent(model: str, folder: Path) -> None:
    """What an engine is sent after a step, in full and with a merged adapter. Nothing is divided again by asking for it."""
    for name, kind in (("full", {}), ("lora", {"peft_config": lora()})):
        trainer = sft(model, str(folder / name / "run"), max_steps=1, **kind)
        weights = PolicyWeights(trainer.policy.outer)  # as an engine is built, before the model is divided
        trainer.train()
        with gathered(trainer.model):
            for _ in range(2):
                tensors = {key: tensor.clone() for key, tensor in weights.tensors({*weights.listed})}
            assert not any(isinstance(weight, DTensor) for weight in trainer.model.parameters())
        assert RANKS == 1 or all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
        probe, convert = LayersProbe(trainer), export.revert_weight_conversion

        def measured(*arguments: Any, probe: LayersProbe = probe, convert: Any = convert) -> Any:
            probe.measure()
            return convert(*arguments)

        if RANKS > 1:
            export.revert_weight_conversion = measured
        with weights.copied(PartialState().is_main_process):
            copies = dict(weights.tensors({*weights.listed}))
            assert RANKS == 1 or all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
        export.revert_weight_conversion = convert
        if PartialState().is_main_process:
            torch.save(tensors, folder / f"{name}.pt")
            torch.save(copies, folder / f"{name}-copies.pt")
            torch.save(probe.whole, folder / f"{name}-whole.pt")


if __name__ == "__main__":
    model, output_dir, *asked = sys.argv[1:]
    for case in asked:
        if case.startswith("until="):
            continued(model, Path(output_dir), int(case.removeprefix("until=")))
            continue
        if case == "sent":
            sent(model, Path(output_dir) / case)
            continue
        if case == "kept-as-shards":
            kept_as_shards(model, Path(output_dir) / case)
            continue
        if case == "resumed":
            resumed(model, Path(output_dir) / case)
            continue
        found = run(case, model, Path(output_dir) / case)
        if PartialState().is_main_process:
            torch.save(found, Path(output_dir) / case / "found.pt")
    PartialState().wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)
