"""What a model needs on some GPUs, from its config alone: memory of each way to train it, seconds of a step, and a set-up that fits.

Weights, gradients and optimizer states are counted exactly. Activations (`size`) and seconds (`cost`) are estimates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from boresight.doctor.cost import Rates, Seconds, Work, price, step_seconds
from boresight.doctor.size import Size, size_of
from boresight.errors import ModelError
from boresight.model.head import MAX_LOGIT_BYTES
from boresight.model.part_options import PARTS
from boresight.trainer.memory_table import BFLOAT16, CHOICES

GB = 1e9
RESERVE = 0.1
"""Share of a GPU's memory that is left to the CUDA context, fragments and buffers of collectives."""
LORA_SHARE = 0.01
"""Trained share of the language model's weights with LoRA: 16 ranks on all linear layers of a 7B model are 0.6 %."""
MIN_TOKENS = 4096
"""A micro-batch of fewer tokens holds hardly a prompt with an image and its completions."""
MAX_TOKENS = 32_768
"""More tokens in a micro-batch make no step faster."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to train, and its bytes per GPU."""

    name: str
    settings: tuple[tuple[str, Any], ...]
    """The options of a run, in the order of a YAML file."""
    weights: float
    gradients: float
    optimizer: float
    adapter: float = 0.0
    """Trained weights of an adapter; 0: all weights are trained."""
    is_sharded: bool = False
    by_layers: bool = False
    """Whether each layer is gathered by itself in every pass."""

    @property
    def num_bytes(self) -> float:
        return self.weights + self.gradients + self.optimizer


def ways(size: Size, num_gpus: int) -> list[Way]:
    """The ways to train, from the most that is learned to the least memory. AdamW, bf16, and no copy of a reference."""
    every, language = size.num_weights, size.weights["language"]
    lora, vision = LORA_SHARE * language, every - language
    launch = (("accelerate_config", "multi_gpu" if num_gpus > 1 else "single_gpu"), ("num_processes", num_gpus))
    bf16, adapter = ("bf16", True), ("train", "language=lora")
    rounded = (("dtype", "bfloat16"), ("bf16_stochastic_round", True))
    small = ("optim", "adamw_torch_8bit")

    def full(name: str, *options: tuple[str, Any]) -> Way:
        each = CHOICES[name]
        return Way(name, (bf16, *options, *launch), each.weight * every, each.gradient * every, each.optimizer * every)

    def beside(name: str, *options: tuple[str, Any]) -> Way:
        each = CHOICES[name]
        # Quantisation is of linear layers; embeddings of the language model are counted with them.
        weights = each.base * language + BFLOAT16 * vision + each.weight * lora
        settings = (bf16, *options, adapter, *launch)
        return Way(name, settings, weights, each.gradient * lora, each.optimizer * lora, adapter=lora)

    found = [full("full")]
    if num_gpus > 1:
        each = CHOICES["full"]
        shard = every / num_gpus
        layer = size.num_in_layers / size.language.num_layers
        two_layers = every - size.num_in_layers + 2 * layer
        for name, kept, whole in (("fsdp2", 1, every), ("fsdp2_layers", 1, two_layers), ("fsdp2_offload", 0, every)):
            divided = (bf16, ("accelerate_config", name), ("num_processes", num_gpus))
            # The whole weights of a step in bf16 and its gradients in float32, beside the shards, which offload keeps in the CPU's memory.
            weights = BFLOAT16 * whole + kept * each.weight * shard
            gradients = each.gradient * whole + kept * each.gradient * shard
            optimizer = kept * each.optimizer * shard
            found.append(
                Way(
                    f"full, {name}",
                    divided,
                    weights,
                    gradients,
                    optimizer,
                    is_sharded=True,
                    by_layers=name == "fsdp2_layers",
                )
            )
    found += [
        full("full, 8-bit optimizer", small),
        full("full, bf16 with stochastic rounding", *rounded),
        full("full, bf16 with stochastic rounding, 8-bit optimizer", *rounded, small),
        beside("LoRA", ("dtype", "bfloat16")),
        beside("LoRA, 8-bit base", ("load_in_8bit", True)),
        beside("LoRA, 4-bit base", ("load_in_4bit", True)),
    ]
    return found


def token_bytes(
    size: Size, *, image_share: float = 0.0, element: float = BFLOAT16, checkpointing: bool = True, tower: bool = True
) -> float:
    """Bytes of activations of a token in a micro-batch: what every layer keeps, and one layer at work in its backward pass.

    Args:
        image_share: of the tokens that stand for images; each costs its patches in the vision tower.
        element: bytes of a number in the layers.
        checkpointing: gradient checkpointing, which keeps the inputs of layers alone.
        tower: whether the vision tower is trained; it keeps nothing otherwise.
    """
    kept = size.language.kept_bytes(element, checkpointing=checkpointing)
    at_work = size.language.layer_bytes(element)
    if size.vision is not None and tower:
        patches = image_share * size.patches_per_token
        kept += patches * size.vision.kept_bytes(element, checkpointing=checkpointing)
        at_work = max(at_work, patches * size.vision.layer_bytes(element))
    return kept + at_work


def tokens_that_fit(size: Size, way: Way, memory: float, image_share: float = 0.0) -> int:
    """Packed tokens of a micro-batch that fit beside a way's weights; 0 where the weights alone do not.

    Args:
        memory: bytes of a GPU.
        image_share: see `token_bytes`.
    """
    free = memory * (1 - RESERVE) - way.num_bytes - 3 * MAX_LOGIT_BYTES
    return max(0, int(free / token_bytes(size, image_share=image_share, tower=not way.adapter)))


def seconds_of(
    size: Size, way: Way, work: Work, rates: Rates, num_gpus: int, tokens: int = MAX_TOKENS
) -> Seconds | None:
    """Seconds of a GRPO step; None where sampling does not fit.

    Args:
        tokens: of a micro-batch.
    """
    each = CHOICES["LoRA"]
    held = each.trained * way.adapter if way.adapter else way.num_bytes
    passes = math.ceil(work.prompts * work.group_tokens / num_gpus / max(1, min(tokens, MAX_TOKENS)))
    return step_seconds(
        size,
        work,
        rates,
        num_gpus,
        adapter_weights=way.adapter,
        sharded=way.is_sharded,
        held_bytes=held,
        layer_passes=passes if way.by_layers else 0,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is proposed for a model on some GPUs."""

    size: Size
    ways: Sequence[Way]
    tokens: Sequence[int]
    """Of a micro-batch, for each way."""
    seconds: Sequence[Seconds | None]
    """Of a step, for each way."""
    best: int | None
    """Which way is proposed; None: nothing fits."""


def plan_of(size: Size, num_gpus: int, memory: float, work: Work, rates: Rates) -> Plan:
    """Memory and seconds of every way.

    Args:
        num_gpus: GPUs of the run.
        memory: bytes of each GPU.
    """
    found = ways(size, num_gpus)
    tokens = [tokens_that_fit(size, way, memory, work.image_share) for way in found]
    seconds = [seconds_of(size, way, work, rates, num_gpus, count) for way, count in zip(found, tokens, strict=True)]
    return Plan(size, found, tokens, seconds, first_that_fits(tokens))


def plan(
    model: str, num_gpus: int, memory_gb: float, work: Work | None = None, rates: Rates | None = None
) -> tuple[Group, str]:
    """The tables of parts and of all ways, and the options of the first way that fits, as YAML.

    Args:
        model: a folder or a hub id; only its config is read.
        num_gpus: GPUs of the run.
        memory_gb: of each GPU, in 10⁹ bytes.
        work: what a step learns from.
        rates: of the GPUs.

    Raises:
        ModelError: the model has no config, or nothing fits.
    """
    work, rates = work or Work(), rates or Rates()
    found = plan_of(size_of(model), num_gpus, memory_gb * GB, work, rates)
    if found.best is None:
        raise ModelError(
            f"{model} fits in no way on {num_gpus} GPUs of {memory_gb:g} GB; the smallest needs {found.ways[-1].num_bytes / GB:.0f} GB "
            "on each: use larger GPUs or a smaller model."
        )
    title = f"{model}: {found.size.num_weights / 1e9:.2f} billion weights on {num_gpus} × {memory_gb:g} GB"
    shown = Group(parts_table(found.size), ways_table(found, title, work, rates, num_gpus))
    return shown, proposal(model, found.ways[found.best], found.tokens[found.best])


def proposal(model: str, way: Way, tokens: int) -> str:
    """The options of a way as YAML, which `--config` of every training command reads."""
    settings = (("model_name_or_path", model), *way.settings, ("max_tokens_per_pass", min(tokens, MAX_TOKENS)))
    return "".join(f"{name}: {str(value).lower() if isinstance(value, bool) else value}\n" for name, value in settings)


def parts_table(size: Size) -> Table:
    """Weights of each part, and its activations in bf16."""
    table = Table(title="parts")
    for heading in ("part", "weights 10⁹", "bf16 GB", "full training GB", "activations kB per token or patch"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    stacks = {"vision": size.vision, "language": size.language}
    for part in PARTS:
        stack, count = stacks.get(part), size.weights[part]
        kept = "" if stack is None else f"{stack.kept_bytes(BFLOAT16, checkpointing=True) / 1e3:.0f} + "
        at_work = "-" if stack is None else f"{stack.layer_bytes(BFLOAT16) / 1e3:.0f} at work"
        amounts = (count / 1e9, BFLOAT16 * count / GB, CHOICES["full"].trained * count / GB)
        table.add_row(part, f"{amounts[0]:.2f}", *(f"{amount:.1f}" for amount in amounts[1:]), f"{kept}{at_work}")
    return table


def ways_table(found: Plan, title: str, work: Work, rates: Rates, num_gpus: int) -> Table:
    """Bytes, tokens and seconds of each way."""
    table = Table(title=title, caption=assumptions(work, rates))
    headings = (
        "weights GB",
        "gradients GB",
        "optimizer GB",
        "tokens of a micro-batch",
        "sample s",
        "step s",
        "1,000 steps",
    )
    table.add_column("way")
    for heading in headings:
        table.add_column(heading, justify="right")
    for way, count, seconds in zip(found.ways, found.tokens, found.seconds, strict=True):
        parts = [f"{part / GB:.1f}" for part in (way.weights, way.gradients, way.optimizer)]
        if not count:
            table.add_row(way.name, *parts, "does not fit", "", "", "")
            continue
        times = ["too large an engine", "", ""]
        if seconds is not None:
            cost = price(seconds.total, rates, num_gpus)
            times = [f"{seconds.sample:.1f}", f"{seconds.total:.1f}", f"{1000 * cost:,.0f}"]
        table.add_row(way.name, *parts, f"{count:,}", *times)
    return table


def assumptions(work: Work, rates: Rates) -> str:
    """What the seconds and the price of a step assume."""
    card = rates.card
    return (
        f"A GRPO step of {work.prompts} prompts × {work.completions} completions, {work.prompt_tokens} + {work.completion_tokens} tokens, "
        f"{work.image_tokens} of them of images. {rates.utilisation:.0%} of {card.flops / 1e12:.0f} · 10¹² operations/s; "
        f"{rates.bandwidth_share:.0%} of {card.bandwidth / 1e12:.2f} TB/s of memory, {card.link / GB:.0f} GB/s between GPUs of a machine, "
        f"{card.network / GB:.1f} GB/s between machines; {rates.price:g} per GPU and hour. Phases follow one another. Rewards, loading of "
        "data, dequantisation and traffic to the CPU's memory are not counted."
    )


def first_that_fits(tokens: Sequence[int]) -> int | None:
    """Which way's micro-batch is the first that holds `MIN_TOKENS`."""
    return next((place for place, count in enumerate(tokens) if count >= MIN_TOKENS), None)
