"""Fingerprints: products of vLLM's modules and fixed vectors. They compare even repacked or sharded weights with a trainer's.

If workers share a model (tensor parallelism), each computes its part, and every worker returns the sum of the parts.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from vllm.distributed.parallel_state import get_tp_group
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearBase,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from boresight.rollout.vllm.inside.delivery import full_name
from boresight.rollout.vllm.protocol.messages import FactorFingerprints, FactorSizes, Fingerprint
from boresight.rollout.vllm.protocol.tensors import fixed_vector, projected


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a matrix that one worker holds."""

    rows: int
    columns: int
    """The size of the whole matrix."""
    places: Tensor
    """[rows held] the rows' indices in the whole matrix."""
    shares: Tensor
    """[rows held] the rows' weights in the sum over workers: less than 1 if several workers hold the same row."""
    first_column: int = 0
    num_columns: int | None = None

    @classmethod
    def whole(cls, rows: int, columns: int, share: float = 1.0) -> Part:
        return cls(rows, columns, torch.arange(rows), torch.full((rows,), share))

    def fingerprint(self, output: Any, like: Tensor, bias: Tensor | None = None) -> Fingerprint:
        """This worker's part of the fingerprint.

        Args:
            output: r ↦ W r, from [columns held] to [rows held].
            bias: [rows held] if this worker adds it, otherwise None.
        """
        vector = fixed_vector(self.columns, phase=0.5, like=like)
        vector = vector.narrow(0, self.first_column, self.num_columns or self.columns)
        result = output(vector).reshape(-1).float()
        if bias is not None:
            result = result + bias.float()
        weights = fixed_vector(self.rows, phase=1.5, like=result)[self.places.to(result.device)]
        return Fingerprint(self.rows, self.columns, float(result @ (weights * self.shares.to(result.device))))


def parameter_fingerprints(model: nn.Module, wanted: Collection[str]) -> dict[str, Fingerprint | None]:
    """Parameter → fingerprint, or None if it has none of its own.

    All workers of the model must call this together.
    """
    found: dict[str, Fingerprint | None] = {}
    for module_name, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            full = full_name(module_name, name)
            if full in wanted:
                found[full] = _fingerprint(module, name, tensor)
    return _summed(found)


def _summed(parts: dict[str, Fingerprint | None]) -> dict[str, Fingerprint | None]:
    group = get_tp_group()
    if group.world_size == 1:
        return parts
    known = {name: part for name, part in parts.items() if part is not None}
    values = torch.tensor([part.value for part in known.values()], dtype=torch.float64)
    distributed.all_reduce(values, group=group.cpu_group)
    sums = {name: replace(known[name], value=value) for name, value in zip(known, values.tolist(), strict=True)}
    return {name: sums.get(name) for name in parts}


def _fingerprint(module: nn.Module, name: str, tensor: Tensor) -> Fingerprint | None:
    if name == "bias" and isinstance(module, LinearBase):
        return None  # the weight's fingerprint includes it
    # A short convolution is stored in a linear layer, but never runs as one.
    if isinstance(module, LinearBase) and tensor.ndim < 3:
        part = linear_part(module)
        # A layer that splits its input adds the bias once, not with every part.
        alone = not isinstance(module, RowParallelLinear) or module.tp_rank == 0
        return part and _run(module, part, module.bias if alone else None)
    if isinstance(module, ParallelLMHead):
        part = _vocab_part(module)
        return _run(module, part, module.bias)
    if isinstance(module, VocabParallelEmbedding):
        part = _vocab_part(module)
        return part.fingerprint(lambda vector: tensor[: len(part.places)] @ vector, tensor)
    if not tensor.numel():
        return None
    rows = tensor.shape[0] if tensor.ndim > 1 else tensor.numel()
    # Every worker holds a norm's weight, so only the first worker's counts.
    part = Part.whole(rows, tensor.numel() // rows, 1.0 if get_tp_group().rank_in_group == 0 else 0.0)
    return part.fingerprint(lambda vector: tensor.reshape(rows, -1) @ vector, tensor)


def linear_part(module: Any) -> Part | None:
    """The part of a linear layer that this worker holds; None for layer types that split their rows in another way."""
    size, rank = module.tp_size, module.tp_rank
    copies = get_tp_group().world_size // size
    if size == 1:
        return Part.whole(module.output_size, module.input_size, 1 / copies)
    if isinstance(module, RowParallelLinear):
        held = module.input_size_per_partition
        whole = Part.whole(module.output_size, module.input_size)
        return Part(whole.rows, whole.columns, whole.places, whole.shares, rank * held, held)
    if type(module) not in (ReplicatedLinear, ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear):
        return None
    replicas = [1] * len(module.output_partition_sizes)
    if isinstance(module, QKVParallelLinear):  # with more workers than key-value heads, several hold the same head
        replicas = [1, module.num_kv_head_replicas, module.num_kv_head_replicas]
    places, shares, start = [], [], 0
    for held, copied in zip(module.output_partition_sizes, replicas, strict=True):
        places.append(start + rank // copied * held + torch.arange(held))
        shares.append(torch.full((held,), 1 / copied))
        start += held * size // copied
    return Part(start, module.input_size, torch.cat(places), torch.cat(shares))


def _vocab_part(module: Any) -> Part:
    held = module.shard_indices
    copies = get_tp_group().world_size // module.tp_size
    places = torch.arange(held.org_vocab_start_index, held.org_vocab_end_index)
    return Part(module.org_vocab_size, module.embedding_dim, places, torch.full(places.shape, 1 / copies))


def _run(module: Any, part: Part, bias: Tensor | None) -> Fingerprint:
    """A layer's fingerprint, computed by its own kernel, because only that kernel can read a packed weight."""
    device = next((each.device for each in module.parameters()), torch.device("cpu"))
    like = torch.empty(0, dtype=module.params_dtype, device=device)
    kernel, held = module.quant_method, len(part.places)
    return part.fingerprint(
        lambda vector: kernel.apply(module, vector[None])[0, :held], like, None if bias is None else bias[:held]
    )


def factor_fingerprints(
    manager: Any, adapter: Any, slot: int, name: str, sizes: FactorSizes
) -> FactorFingerprints | None:
    """Fingerprints of the two factors of an adapter's module; None if the engine bound no factors to it."""
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    mapper = mapper and mapper.get_rename_mapper()
    module_name, _ = parse_fine_tuned_lora_name(f"base_model.model.{name}.lora_A.weight", mapper)
    whole = next((whole for whole, parts in manager.packed_modules.items() if module_name in parts), module_name)
    place = manager.packed_modules[whole].index(module_name) if whole != module_name else 0
    if whole not in manager.modules or adapter.get_lora(whole) is None:
        return None
    stacked = manager.modules[whole].lora_a_stacked, manager.modules[whole].lora_b_stacked
    down, up = (each[place][slot, 0] if isinstance(each, tuple) else each[slot, 0] for each in stacked)
    factors = down[: sizes.rank, : sizes.columns], up[: sizes.rows, : sizes.rank]
    return FactorFingerprints(*(projected(w.__matmul__, w.shape[0], w.shape[1], w) for w in factors))
