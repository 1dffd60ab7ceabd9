"""What ranks tell each other outside the collectives: an error, the end of a process, and where each of them is.

A collective waits for all ranks. Where one of them fails alone, the others wait until a time-out that does not name the cause. So every
rank holds a connection to the first, which passes on what a rank reports. The end of a process closes its connection, whatever ended it.

A rank that hears of a failure elsewhere aborts the collective that it waits in, raises `RankError` with the other's trace, and ends its
process if that does not help.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any

import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from boresight.errors import RankError
from boresight.terminal import printable

ABORT_S = 2.0
"""Seconds from hearing of a failure to aborting the collectives: time for a rank that fails by itself."""
END_S = 10.0
"""Seconds from hearing of a failure to the end of a process that is still in a collective."""
HEAR_S = 5.0
"""Seconds for which a rank whose collective failed waits for the cause."""
WAIT_S = 60.0
"""Seconds without progress after which the first rank prints who waits for whom; then twice as many, and so on."""
MARK = "raised_on_every_rank"
"""Attribute of an error that all ranks raise at the same place."""


@dataclass(slots=True)
class Position:
    """Where a rank is."""

    count: int = 0
    """The number of stations passed. All ranks pass the same stations in the same order."""
    name: str = "the start"
    since: float = 0.0


class RankLink:
    """The connections between ranks. One for each process; `start` makes it.

    Args:
        rank, num_ranks: this process's, and how many there are.
        wait_s: see `WAIT_S`.
    """

    def __init__(self, rank: int, num_ranks: int, *, wait_s: float) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self.fault: tuple[int, str] | None = None
        """The rank that failed first as far as this one has heard, and its trace."""
        self._wait_s = wait_s
        self._depth = 0
        self._heard = threading.Event()
        self._sending = threading.Lock()
        self._peers: dict[int, Connection[Any, Any]] = {}
        self._busy = dict.fromkeys(range(num_ranks), True)
        self._positions = {other: Position(since=time.monotonic()) for other in range(num_ranks)}

    def connect(self) -> None:
        """Connect to the first rank. All ranks call this together.

        Raises:
            OSError: the address of the first rank cannot be reached or bound.
        """
        address, key = None, secrets.token_bytes(16)
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        listener = None
        if self.rank == 0:
            listener = Listener((host, 0), authkey=key, backlog=self.num_ranks)
            address = (host, listener.address[1])
        address, key = broadcast_object_list([address, key])
        if listener is None:
            self._peers[0] = Client(tuple(address), authkey=key)
            self._send(0, "hello", "")
            threading.Thread(target=self._listen, name="rank-link", daemon=True).start()
            return
        for _ in range(self.num_ranks - 1):
            peer = listener.accept()
            self._peers[json.loads(peer.recv_bytes())["rank"]] = peer
        listener.close()
        threading.Thread(target=self._listen, name="rank-link", daemon=True).start()
        threading.Thread(target=self._watch, name="rank-waits", daemon=True).start()

    # ---- Called by this rank ----------------------------------------------------------------------------------------------------

    def at(self, station: str) -> None:
        """Report that this rank reached a station."""
        own = self._positions[self.rank]
        self._positions[self.rank] = Position(own.count + 1, station, time.monotonic())
        if self.rank:
            self._send(0, "at", station, count=own.count + 1)

    def report(self, error: BaseException) -> None:
        """Report an error of this rank alone, with its trace."""
        if self.fault is None and not getattr(error, MARK, False):
            text = "".join(traceback.format_exception(error)).rstrip()
            self.fault = (self.rank, text)
            self._pass_on(self.rank, text)

    def cause(self, error: BaseException) -> RankError | None:
        """The failure of another rank that an error comes from; None if it is this rank's own, which is then reported."""
        if getattr(error, MARK, False) or isinstance(error, RankError):
            return None
        if self.fault is None and _is_of_a_collective(error):
            self._heard.wait(HEAR_S)
        if self.fault is not None and self.fault[0] != self.rank:
            return self._error()
        self.report(error)
        return None

    def enter(self, step: int) -> None:
        """Count into (1) or out of (-1) work that all ranks do. The failure of a rank outside of it concerns nobody."""
        self._depth += step
        is_busy = self._depth > 0
        if is_busy != self._busy[self.rank]:
            self._busy[self.rank] = is_busy
            if self.rank:
                self._send(0, "busy" if is_busy else "idle", "")

    def _error(self) -> RankError:
        assert self.fault is not None
        return RankError(f"On rank {self.fault[0]}: {self.fault[1]}")

    # ---- Messages ---------------------------------------------------------------------------------------------------------------

    def _send(self, to: int, kind: str, text: str, **more: Any) -> None:
        content = json.dumps({"rank": self.rank, "kind": kind, "text": text, **more}).encode()
        peer = self._peers.get(to)
        if peer is not None:
            with self._sending, contextlib.suppress(OSError):  # the end of the other is heard by `_listen`
                peer.send_bytes(content)

    def _pass_on(self, rank: int, text: str) -> None:
        for other in [peer for peer in self._peers if peer != rank]:
            self._send(other, "fault", text, of=rank)

    def _listen(self) -> None:
        while self._peers:
            for ready in wait(list(self._peers.values())):
                other = next((rank for rank, peer in self._peers.items() if peer is ready), None)
                if other is None:
                    continue
                try:
                    message = json.loads(ready.recv_bytes())  # pyright: ignore[reportAttributeAccessIssue]
                except (EOFError, OSError):
                    del self._peers[other]
                    if self._busy[other]:
                        self._hear(other, f"the process ended without an error of its own ({_ENDED}).")
                    continue
                self._take(other, message)

    def _take(self, other: int, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "fault":
                self._hear(message.get("of", other), message["text"])
            case "at":
                self._positions[other] = Position(message["count"], message["text"], time.monotonic())
            case "busy" | "idle" as kind:
                self._busy[other] = kind == "busy"

    def _hear(self, rank: int, text: str) -> None:
        if self.fault is not None:
            return
        self.fault = (rank, text)
        self._heard.set()
        if self.rank == 0:
            self._pass_on(rank, text)
        if self._busy[self.rank]:
            threading.Thread(target=self._leave, name="rank-leave", daemon=True).start()

    def _leave(self) -> None:
        """End what this rank waits in: first the collective, then the process."""
        time.sleep(ABORT_S)
        if not self._busy[self.rank]:
            return
        group: Any = torch.distributed.group.WORLD
        if group is not None:
            with contextlib.suppress(Exception):  # whatever the library of the collectives raises
                group.abort()
        time.sleep(END_S - ABORT_S)
        if self._busy[self.rank]:
            print(printable(f"boresight: rank {self.rank} ends. {self._error()}"), file=sys.stderr, flush=True)
            os._exit(1)

    # ---- Who waits for whom -----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        patience, newest = self._wait_s, 0.0
        while self.fault is None and self._peers:
            time.sleep(min(1.0, self._wait_s / 4))
            latest = max(position.since for position in self._positions.values())
            if latest != newest:
                patience, newest = self._wait_s, latest
            if time.monotonic() - latest >= patience and (line := self.waits()):
                patience *= 2
                print(f"boresight: {line}", file=sys.stderr, flush=True)

    def waits(self) -> str | None:
        """Who waits for whom, as far as the first rank knows; None if all are at the same station."""
        now, found = time.monotonic(), self._positions
        last = min(position.count for position in found.values())
        ahead = [rank for rank, position in found.items() if position.count > last]
        behind = [rank for rank, position in found.items() if position.count == last]
        if not ahead:
            return None
        waited = now - max(found[rank].since for rank in ahead)
        where = found[behind[0]]
        return (
            f"{_ranks(ahead)} ({found[ahead[0]].name}) waited {waited:.0f} s for {_ranks(behind)}, in {where.name} for "
            f"{now - where.since:.0f} s."
        )


_ENDED = "killed, or out of memory"


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (" and others" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def _is_of_a_collective(error: BaseException) -> bool:
    """Whether another rank may be the cause: the error comes out of a collective."""
    frames = traceback.extract_tb(error.__traceback__)
    text = str(error).lower()
    return any("torch/distributed" in frame.filename for frame in frames) or "gloo" in text or "nccl" in text


_link: list[RankLink] = []
"""This process's link, once there is one."""


def start() -> None:
    """Connect the ranks of this run, once. All ranks call this together, after the process group is set up."""
    state = PartialState()
    if _link or state.num_processes == 1:
        return
    link = RankLink(state.process_index, state.num_processes, wait_s=WAIT_S)
    link.connect()
    _link.append(link)
    before = sys.excepthook

    def report_uncaught(kind: Any, error: BaseException, trace: Any) -> None:
        report(error)
        before(kind, error, trace)

    sys.excepthook = report_uncaught


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Work that all ranks do: an error of one is reported to the others, and an error that another rank caused is raised as that.

    Raises:
        RankError: another rank failed; the message has its trace.
    """
    entered = list(_link)  # the work may start the link
    for link in entered:
        link.enter(1)
    try:
        yield
    except BaseException as error:
        other = _link[0].cause(error) if _link else None
        if other is not None:
            raise other from error
        raise
    finally:
        for link in entered:
            link.enter(-1)


def report(error: BaseException) -> None:
    """Report an error of this rank to the others."""
    if _link and not isinstance(error, RankError):
        _link[0].report(error)


def at(station: str) -> None:
    """Report that this rank reached a station."""
    if _link:
        _link[0].at(station)
