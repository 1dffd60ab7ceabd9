"""Several engines as one: prompts are spread over those that work, and each holds the policy's weights.

    requests ──▶ engine A ──▶ groups 0, 2, 4 …
             └─▶ engine B ──▶ groups 1, 3, 5 …      B fails: its prompts go to A, and B is left out until it is back and synced

A completion depends on its request, which has a seed of its own, and not on the engine that samples it. So the number of engines does not
change what is sampled, where engines of one kind compute alike.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from boresight.background import in_thread
from boresight.errors import ConfigError, EngineError, EngineGoneError, EngineRestartedError
from boresight.rollout.synced import SyncedEngine, SyncReport
from boresight.sampling import SamplingSettings, Weights
from boresight.types import Group, Prompt

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

POLL_S = 0.5
"""Seconds between two checks while no engine works."""
LABEL_BREAK = "\n"
"""Between the labels of the engines, in the label of all of them."""


class MemberEngine(SyncedEngine, Protocol):
    """One of several engines. A call to one that is unavailable raises `EngineGoneError` at once, instead of waiting for it."""

    def is_up(self) -> bool:
        """Whether it can be called now."""
        ...

    def check(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> None:
        """Check prompts against the engine's limits.

        Raises:
            ConfigError: a prompt or a setting exceeds them.
        """
        ...


class SeveralEngines:
    """Engines of one kind as a single one.

    An engine that fails is left out: its prompts are sampled again by the others. Whenever weights are synced, engines that are back are
    sent all weights, and used again. Only if none is left, a call waits for one.

    Args:
        engines: this rank's connections, in the same order on every rank.
        rank: this process's. Its first prompt goes to the engine of this number, so that ranks with few prompts use different engines.
        timeout_s: how long to wait if no engine works.
        synced: called after every sync.

    Raises:
        ConfigError: the engines compute in different dtypes.
    """

    def __init__(
        self,
        engines: Sequence[MemberEngine],
        *,
        rank: int,
        timeout_s: float,
        synced: Callable[[], None] = lambda: None,
    ) -> None:
        if len(dtypes := {engine.dtype: engine.where for engine in engines}) > 1:
            found = ", ".join(f"{where}: {dtype}" for dtype, where in dtypes.items())
            raise ConfigError(f"Several engines must compute in one dtype ({found}): start them with the same --dtype.")
        self.engines = list(engines)
        self.rank = rank
        self.timeout_s = timeout_s
        self._synced = synced
        self.counts: Counter[str] = Counter()
        self.version = ""
        self._sources: dict[int, str] = {}
        """Place of a group in the last batch → the engine that sampled it."""
        self._out: set[int] = set()
        """Numbers of the engines that are left out."""

    @property
    def where(self) -> str:
        return " and ".join(engine.where for engine in self.engines)

    @property
    def dtype(self) -> str:
        return self.engines[0].dtype

    @property
    def pushes(self) -> bool:
        return self.engines[0].pushes

    # ---- Sampling ---------------------------------------------------------------------------------------------------------------

    def requests(self, prompts: Sequence[Prompt], settings: SamplingSettings) -> Sequence[Any]:
        """Requests that each of the engines accepts."""
        first, *others = self.engines
        for engine in others:
            engine.check(prompts, settings)
        return first.requests(prompts, settings)

    def completed(self, prompts: Sequence[Prompt], requests: Sequence[Any], settings: SamplingSettings) -> list[Group]:
        """As `SyncedEngine.completed`. Prompts of an engine that fails are sampled again by the others, and counted.

        Raises:
            EngineRestartedError: no engine holds the policy's weights any more.
        """
        groups: dict[int, Group] = {}
        while missing := [place for place in range(len(prompts)) if place not in groups]:
            working = [number for number in range(len(self.engines)) if number not in self._out]
            if not working:
                raise EngineRestartedError(f"None of {self.where} holds the policy's weights.")
            shares = dealt(missing, working, first=self.rank)

            def sampled(number: int, shares: dict[int, list[int]] = shares) -> list[Group]:
                own = shares[number]
                engine = self.engines[number]
                return engine.completed([prompts[each] for each in own], [requests[each] for each in own], settings)

            for number, found in self._together(sampled, list(shares)).items():
                if isinstance(found, EngineError):
                    self.counts["prompts_sampled_again"] += len(shares[number])
                else:
                    groups.update(zip(shares[number], found, strict=True))
                    self._sources |= dict.fromkeys(shares[number], self.engines[number].where)
        return [groups[place] for place in range(len(prompts))]

    def sampled_by(self, place: int) -> str:
        return self._sources[place]

    def _together(self, work: Callable[[int], Result], numbers: Sequence[int]) -> dict[int, Result | EngineError]:
        """The results of work on some engines side by side. Those that are gone or have restarted are left out from now on.

        Raises:
            EngineError: one failed in another way.
        """
        futures = {number: in_thread(lambda number=number: work(number)) for number in numbers}
        results: dict[int, Result | EngineError] = {}
        failure: Exception | None = None
        for number, future in futures.items():
            try:
                results[number] = future.result()
            except (EngineGoneError, EngineRestartedError) as error:
                logger.warning("%s It is left out until weights are synced again.", error)
                self._out.add(number)
                results[number] = error
            except Exception as error:
                failure = failure or error
            engine = self.engines[number]
            self.counts.update(engine.counts)
            engine.counts.clear()
        if failure is not None:
            raise failure
        return results

    # ---- Weights ----------------------------------------------------------------------------------------------------------------

    def sync(self, step: int, *, in_flight: bool = False) -> SyncReport | None:
        """As `SyncedEngine.sync`, for all engines side by side. Those that were left out and are up again are used again.

        Raises:
            SyncError: weights did not arrive at some engine as they were sent.
            EngineError: no engine is up within `timeout_s`.
        """
        start = time.monotonic()
        while True:
            back = [number for number in self._out if self.engines[number].is_up()]
            for number in back:
                self.engines[number].outdate()
                self._out.remove(number)
            working = [number for number in range(len(self.engines)) if number not in self._out]
            found = self._together(lambda number: self.engines[number].sync(step, in_flight=in_flight), working)
            self._synced()
            for number in {*back} - self._out:
                logger.warning("%s is back, and used again.", self.engines[number].where)
                self.counts["engines_taken_back"] += 1
            if len(self._out) < len(self.engines):
                break
            if time.monotonic() - start > self.timeout_s:
                raise EngineError(
                    f"None of {self.where} recovered within {self.timeout_s:g} s. Start one of them again, or raise the timeout."
                )
            time.sleep(POLL_S)
        self.version = LABEL_BREAK.join(
            "" if number in self._out else engine.version for number, engine in enumerate(self.engines)
        )
        reports = [each for each in found.values() if isinstance(each, SyncReport)]
        if not reports:
            return None
        return SyncReport(
            sum(each.num_sent for each in reports),
            sum(each.num_compared for each in reports),
            max(each.seconds for each in reports),
        )

    def adopt(self, version: str) -> None:
        """As `SyncedEngine.adopt`. An engine with an empty label has no weights, and is left out on this rank too."""
        self.version = version
        self._out = set()
        for number, (engine, label) in enumerate(zip(self.engines, version.split(LABEL_BREAK), strict=True)):
            if label:
                engine.adopt(label)
            else:
                self._out.add(number)

    @property
    def is_fresh(self) -> bool:
        """As `SyncedEngine.is_fresh`. An engine that was left out may be back, and lack them."""
        return not self._out and all(engine.is_fresh for engine in self.engines)

    def outdate(self) -> None:
        for engine in self.engines:
            engine.outdate()

    def rest(self) -> None:
        for number, engine in enumerate(self.engines):
            if number not in self._out:
                engine.rest()

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


def dealt(places: Sequence[int], engines: Sequence[int], *, first: int) -> dict[int, list[int]]:
    """Which of these prompts each engine samples, in turn; the first prompt goes to engine `first`, counted around.

    Args:
        places: numbers of prompts.
        engines: numbers of the engines that work.
    """
    shares: dict[int, list[int]] = {}
    for turn, place in enumerate(places, first):
        shares.setdefault(engines[turn % len(engines)], []).append(place)
    return shares


class GatheredOnce:
    """A policy's weights for several engines that are synced side by side: a tensor that must be computed is computed once for all.

    Computed tensors (those of merged adapters) are kept in the CPU's memory until `forget`. All others are the policy's own, and cost
    nothing.

    Args:
        weights: the policy's.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._computed: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    @property
    def listed(self) -> Any:
        return self._weights.listed

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """As `Weights.tensors`. Several threads may call it at the same time."""
        computed = {name for name in names if self.listed[name].computed}
        with self._lock:
            missing = computed - self._computed.keys()
            for name, tensor in self._weights.tensors(missing) if missing else ():
                self._computed[name] = tensor.cpu()
        yield from self._weights.tensors({*names} - computed)
        yield from ((name, self._computed[name]) for name in self.listed if name in computed)

    def forget(self) -> None:
        """Free the tensors that were computed."""
        self._computed.clear()
