"""Sends new weights to an engine, and verifies that they arrived.

A sync is verified if every tensor that was sent reached a parameter, no module received only a part of its tensors, and the engine's
modules and the trainer's weights map fixed vectors to the same numbers (`tensors.projected`). The first sync compares all modules, each
later one a sample of every part that was sent.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from boresight.errors import EngineRestartedError, SyncError
from boresight.rollout.synced import SyncReport
from boresight.rollout.vllm.engine import Engine, by_replica
from boresight.rollout.vllm.protocol.messages import (
    Fingerprint,
    GetFacts,
    GetFingerprints,
    GetLastUpdate,
    GetParameterSources,
    UpdateReport,
)
from boresight.rollout.vllm.protocol.tensors import fixed_vector, projected
from boresight.sampling import Weights

TOLERANCE = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""Largest allowed difference between an engine's fingerprint and the trainer's, relative to the vectors' lengths."""

SAMPLE = 8
"""How many parameters of each part are compared after a later sync. Every sync compares the next ones."""


class WeightSync:
    """Sends a policy's weights to an engine: all of them once, then those that training changes.

    The engine loads whole modules. So tensors that share one with a trained tensor (q and k besides a trained v) are sent too.

    Args:
        engine: the receiver.
        weights: the policy's weights.
    """

    def __init__(self, engine: Engine, weights: Weights) -> None:
        self.engine = engine
        self.weights = weights
        self.dtype = getattr(torch, engine.call(GetFacts()).dtype)
        self._sources: dict[str, list[str]] = {}
        """The engine's parameter → the saved names that make it up."""
        self._count = 0

    def push(self, version: str, *, everything: bool = False, in_flight: bool = False) -> SyncReport:
        """Send the weights that training may have changed since the last push, or all weights, and verify them.

        Args:
            in_flight: requests are being completed, and go on with the new weights. Caches stay, since they use them.

        Raises:
            SyncError: weights did not arrive, or not where they belong.
        """
        start = time.perf_counter()
        everything = everything or not self._sources
        names = set(self.weights.listed) if everything else self._moved()
        self.engine.load(lambda: self.weights.tensors(names), version, in_flight=in_flight)
        for where, answer in by_replica(self.engine, GetLastUpdate()):
            self._check_report(where, answer.report, names, everything)
        if everything:
            self._sources = self.engine.call(GetParameterSources()).sources
        num_compared = self._compare(self._compared(names, everything))
        if not in_flight:
            self.engine.reset_caches(images=any(self.weights.listed[name].images for name in names))
        self._count += 1
        return SyncReport(len(names), num_compared, time.perf_counter() - start)

    def _moved(self) -> set[str]:
        """The trained tensors, and all tensors that share a module with them."""
        modules: dict[str, set[str]] = {}
        for parameter, names in self._sources.items():
            modules.setdefault(parameter.rpartition(".")[0], set()).update(names)
        trained = {name for name, weight in self.weights.listed.items() if weight.trained}
        return trained.union(*(names for names in modules.values() if names & trained))

    def _check_report(self, where: str, report: UpdateReport | None, names: Collection[str], everything: bool) -> None:
        if report is None:
            raise EngineRestartedError(f"{where} has no record of a sync.")
        if lost := report.not_received:
            raise SyncError(f"{where} has no parameter for {listed(lost)}, which were sent.")
        if partly := report.partly_covered:
            parts = [f"{module} (missing {listed(missing)})" for module, missing in partly.items()]
            raise SyncError(
                f"{where} received only parts of modules, which would compute wrong results: {listed(parts)}."
            )
        if missing := sorted(set(names) - set(report.received) - set(report.left_out)):
            raise SyncError(f"{where} did not receive {listed(missing)}.")
        if everything and (untouched := report.untouched):
            raise SyncError(f"{where} received no weights for {listed(untouched)}.")

    def _compared(self, names: Collection[str], everything: bool) -> list[str]:
        """The engine's parameters to compare: all, or a sample of vision tower and projector and a sample of the language model."""
        touched = [parameter for parameter, sources in self._sources.items() if set(sources) <= set(names)]
        if everything:
            return touched
        compared: list[str] = []
        for images in (True, False):
            part = [each for each in touched if self.weights.listed[self._sources[each][0]].images == images]
            first = self._count * SAMPLE % max(len(part), 1)
            compared += (part[first:] + part[:first])[:SAMPLE]
        return compared

    def _compare(self, parameters: Sequence[str]) -> int:
        """Compare all replicas' fingerprints with the trainer's.

        Returns:
            How many parameters were compared in each replica.
        """
        replicas: dict[str, dict[str, Fingerprint]] = {}
        for where, answer in by_replica(self.engine, GetFingerprints(list(parameters))):
            found = answer.parameters
            if unknown := set(parameters) - found.keys():
                raise SyncError(f"{where} no longer has the parameter {listed(sorted(unknown))}.")
            replicas[where] = {name: each for name, each in found.items() if each is not None}
        names = {name for each in replicas.values() for name in each}
        tensors = dict(self.weights.tensors({source for name in names for source in self._with_bias(name)}))
        for where, fingerprints in replicas.items():
            wrong = []
            for name, fingerprint in fingerprints.items():
                expected, scale = self._expected(name, fingerprint, tensors)
                if not abs(fingerprint.value - expected) <= TOLERANCE[str(self.dtype).removeprefix("torch.")] * scale:
                    wrong.append(
                        f"{name} ({listed(self._sources[name])}): {fingerprint.value:.6g} instead of {expected:.6g}"
                    )
            if wrong:
                raise SyncError(f"{where} does not hold the weights that were sent: {'; '.join(wrong[:5])}.")
        return min(map(len, replicas.values()))

    def _bias(self, parameter: str) -> list[str]:
        module, _, kind = parameter.rpartition(".")
        return self._sources.get(f"{module}.bias", []) if kind == "weight" else []

    def _with_bias(self, parameter: str) -> list[str]:
        return [*self._sources[parameter], *self._bias(parameter)]

    def _expected(self, name: str, found: Fingerprint, tensors: Mapping[str, Tensor]) -> tuple[float, float]:
        """The fingerprint of the trainer's weights, and its largest possible value."""
        rows, columns = found.rows, found.columns
        weight = torch.cat([tensors[source].reshape(-1) for source in self._sources[name]]).to(self.dtype)
        weight = weight[: rows * columns].reshape(rows, columns)
        # The fingerprint of a matrix includes its bias; that of a vector (a norm's weight) does not.
        bias = (
            torch.cat([tensors[source] for source in self._bias(name)]).to(self.dtype)
            if columns > 1 and self._bias(name)
            else None
        )
        outputs: list[Tensor] = []

        def matrix(vector: Tensor) -> Tensor:
            output = weight @ vector
            outputs.append(output if bias is None else output + bias)
            return outputs[0]

        value = projected(matrix, rows, columns, weight)
        length = fixed_vector(rows, phase=1.5, like=outputs[0].float()).norm() * outputs[0].float().norm()
        return value, float(length)


def listed(names: Sequence[str]) -> str:
    """The first five names, and the number of further ones."""
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
