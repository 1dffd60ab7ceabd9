"""The backward arrow: new weights to an engine, and the proof that they arrived.

A sync is believed when every tensor that was sent went somewhere, no module was covered in part, and the engine's modules answer
fixed vectors as the trainer's weights do (`vectors.projected`): all of them after the first sync, a sample of every part that was
sent after each later one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boresight.errors import EngineError, EngineRestartedError
from boresight.rollout.vllm.engine import Engine
from boresight.rollout.vllm.vectors import fixed_vector, projected
from boresight.types import Weights

logger = logging.getLogger(__name__)

TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""How far an engine's answer may be from the trainer's, as a share of the vectors' lengths."""

SAMPLE = 8
"""Modules of each part that are asked after a later sync. Which ones moves on with every sync."""


class SyncError(EngineError):
    """Weights did not arrive as they were sent; the message names them."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did."""

    num_sent: int
    """Tensors under their saved names."""
    num_compared: int
    """Modules of the engine whose answers were compared with the trainer's."""
    seconds: float


class WeightSync:
    """Sends a policy's weights to an engine: all of them once, then those that training moves.

    What shares a module of the engine with a moved tensor (q and k beside a trained v) goes along, since the engine loads whole modules.

    Args:
        engine: where to.
        weights: the policy's.
    """

    def __init__(self, engine: Engine, weights: Weights) -> None:
        self.engine = engine
        self.weights = weights
        self.dtype = getattr(torch, engine.call("boresight_facts")["dtype"])
        self._sources: dict[str, list[str]] = {}
        """The engine's parameter → the saved names that make it up."""
        self._count = 0

    def push(self, version: str, *, everything: bool = False) -> SyncReport:
        """Send what training may have moved since the last push, or everything, and prove it.

        Raises:
            SyncError: something did not arrive, or not where it belongs.
        """
        start = time.perf_counter()
        everything = everything or not self._sources
        names = set(self.weights.listed) if everything else self._moved()
        self.engine.load(lambda: self.weights.tensors(names), version)
        self._check_report(self.engine.call("boresight_report"), names, everything)
        if everything:
            self._sources = self.engine.call("boresight_sources")
        num_compared = self._compare(self._asked(names, everything))
        self.engine.reset_caches(images=any(self.weights.listed[name].images for name in names))
        self._count += 1
        return SyncReport(len(names), num_compared, time.perf_counter() - start)

    def _moved(self) -> set[str]:
        """The trained tensors, and what shares a module with them."""
        modules: dict[str, set[str]] = {}
        for parameter, names in self._sources.items():
            modules.setdefault(parameter.rpartition(".")[0], set()).update(names)
        trained = {name for name, weight in self.weights.listed.items() if weight.trained}
        return trained.union(*(names for names in modules.values() if names & trained))

    def _check_report(self, report: Mapping[str, Any], names: Collection[str], everything: bool) -> None:
        where = self.engine.where
        if not report:
            raise EngineRestartedError(f"{where} knows of no sync.")
        if lost := report["not_received"]:
            raise SyncError(f"{where} has no place for {listed(lost)}: they were sent and went nowhere.")
        if partly := report["partly_covered"]:
            parts = [f"{module} (missing {listed(missing)})" for module, missing in partly.items()]
            raise SyncError(f"{where} got parts of modules, which would compute nonsense: {listed(parts)}.")
        if missing := sorted(set(names) - set(report["received"]) - set(report["left_out"])):
            raise SyncError(f"{where} never got {listed(missing)}.")
        if everything and (untouched := report["untouched"]):
            raise SyncError(f"{where} got no weights for {listed(untouched)}.")

    def _asked(self, names: Collection[str], everything: bool) -> list[str]:
        """The engine's parameters to compare: all, or a sample of the tower and projector's and of the language model's."""
        touched = [parameter for parameter, sources in self._sources.items() if set(sources) <= set(names)]
        if everything:
            return touched
        asked = []
        for images in (True, False):
            part = [each for each in touched if self.weights.listed[self._sources[each][0]].images == images]
            first = self._count * SAMPLE % max(len(part), 1)
            asked += (part[first:] + part[:first])[:SAMPLE]
        return asked

    def _compare(self, parameters: Sequence[str]) -> int:
        answers = self.engine.call("boresight_probe", json.dumps({"parameters": list(parameters)}))
        asked = {name: answer for name, answer in answers.items() if answer is not None}
        if unknown := set(parameters) - answers.keys():
            raise SyncError(f"{self.engine.where} has no parameter {listed(sorted(unknown))} any more.")
        tensors = dict(self.weights.tensors({source for name in asked for source in self._with_bias(name)}))
        wrong = []
        for name, (rows, columns, value) in asked.items():
            expected, scale = self._expected(name, rows, columns, tensors)
            if not abs(value - expected) <= TOLERANCE[str(self.dtype).removeprefix("torch.")] * scale:
                wrong.append(f"{name} ({listed(self._sources[name])}): {value:.6g} instead of {expected:.6g}")
        if wrong:
            raise SyncError(f"{self.engine.where} does not hold the weights that it was sent: {'; '.join(wrong[:5])}.")
        return len(asked)

    def _bias(self, parameter: str) -> list[str]:
        module, _, kind = parameter.rpartition(".")
        return self._sources.get(f"{module}.bias", []) if kind == "weight" else []

    def _with_bias(self, parameter: str) -> list[str]:
        return [*self._sources[parameter], *self._bias(parameter)]

    def _expected(self, name: str, rows: int, columns: int, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        """What the trainer's weights answer, and how large an answer could be."""
        weight = torch.cat([tensors[source].reshape(-1) for source in self._sources[name]]).to(self.dtype)
        weight = weight[: rows * columns].reshape(rows, columns)
        # A vector of its own (a norm's weight) is asked alone, a matrix together with its bias.
        bias = (
            torch.cat([tensors[source] for source in self._bias(name)]).to(self.dtype)
            if columns > 1 and self._bias(name)
            else None
        )
        answer: list[Tensor] = []

        def matrix(vector: Tensor) -> Tensor:
            output = weight @ vector
            answer.append(output if bias is None else output + bias)
            return answer[0]

        value = projected(matrix, rows, columns, weight)
        length = fixed_vector(rows, phase=1.5, like=answer[0].float()).norm() * answer[0].float().norm()
        return value, float(length)


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
