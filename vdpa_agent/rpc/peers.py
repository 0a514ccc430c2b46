"""Peers: who is at the other end, as the kernel says, and what each user has open."""

import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from vdpa_agent.config import CONNECTIONS_FOR_ROOT, LimitsConfig
from vdpa_agent.model.allowance import Allowance
from vdpa_agent.rpc.limits import Reason
from vdpa_agent.rpc.repeats import Repeats
from vdpa_agent.rpc.turns import Turns

_TOLD_EVERY_S: Final = 10.0
"""The least time between two log lines of a kind about one user."""

_ARRIVALS_PER_S: Final = 100
"""Connections that a user other than root may make for long, a second; as many as may be open at once."""

_ANSWER_BYTES_PER_S: Final = 4 * 1024 * 1024
_ANSWER_BYTES_BURST: Final = 8 * 1024 * 1024
"""What the answers to one user may have: for long, a second, and at once. 50 lists of 1,023 devices a second, or 200 of
256; GetSocketpath, which owes an answer, is not concerned."""

_WATCHES: Final = 64
_WATCHES_OF_ROOT: Final = 256
"""Streams that one user may watch."""

_TURNED_AWAY_COSTS: Final = 10
"""As how many new connections one counts that was turned away."""

_TOLD_AT_ONCE: Final = 50
"""The most lines about all users, at once and in every ten seconds: a container can have 65,536 users."""

_CREDENTIALS: Final = struct.Struct("iII")
_SO_PEERGROUPS: Final = 59
"""From Linux' asm-generic/socket.h; Python has no name for it."""

_GROUPS_BYTES: Final = 1_024
"""Python asks for no more; somebody of more than 256 groups is known by the primary one alone."""

log = structlog.get_logger(__name__)


class Peer(NamedTuple):
    """Who connected, with the ids of that moment."""

    pid: int
    uid: int
    gid: int
    allowed: bool


class Account:
    """What one user has open; those who may not call share one.

    Attributes:
        connections: how many are open.
        connections_max: how many may be.
        open_calls: calls that wait for their answers.
        watches: those of them that are streams of answers.
        watches_max: how many may be.
        calls: the rate of new calls.
        answer_bytes: the rate of what they are answered with.
        arrivals: the rate of new connections, which does not bind root.
        turns: the connections that wait since there were too many calls.
    """

    __slots__ = (
        *(
            "answer_bytes",
            "arrivals",
            "calls",
            "connections",
            "connections_max",
            "open_calls",
            "turns",
            "watches",
            "watches_max",
        ),
    )

    def __init__(
        self,
        connections_max: int,
        watches_max: int,
        *,
        calls: Allowance,
        answer_bytes: Allowance,
        arrivals: Allowance,
    ) -> None:
        self.connections = 0
        self.connections_max = connections_max
        self.open_calls = 0
        self.watches = 0
        self.watches_max = watches_max
        self.calls = calls
        self.answer_bytes = answer_bytes
        self.arrivals = arrivals
        self.turns = Turns(calls)


class Peers:
    """Keeps the accounts, counts who is turned away, and tells the log about it, seldom.

    Attributes:
        limits: the limits in force.
        turned_away: how many calls and connections were, by reason; all reasons are in it from the start.
        connections: how many are open.
        clock: the time, in seconds.
    """

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.turned_away: Counter[Reason] = Counter(dict.fromkeys(Reason, 0))
        self.clock = clock
        self._own_uid = os.geteuid()
        self._accounts: dict[int, Account] = {}
        self._strangers = self._account(max(1, limits.connections_per_uid // 4))
        self.connections = 0
        self._repeats = Repeats(clock, at_once=1, every_s=_TOLD_EVERY_S, of_all=_TOLD_AT_ONCE)

    def identify(self, connected: Any) -> Peer:
        """Who is at the other end of a connected unix socket."""
        pid, uid, gid = _CREDENTIALS.unpack(
            connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        allowed = uid in (0, self._own_uid) or uid in self.limits.allow_uids or gid in self.limits.allow_gids
        if not allowed and self.limits.allow_gids:
            allowed = not self.limits.allow_gids.isdisjoint(_groups(connected))
        return Peer(pid, uid, gid, allowed)

    def account_of(self, peer: Peer) -> Account:
        """The account of a peer that connected."""
        if not peer.allowed:
            return self._strangers
        account = self._accounts.get(peer.uid)
        if account is None:
            self._forget_absent()
            limits = self.limits
            account = self._accounts[peer.uid] = (
                self._account(limits.connections_per_uid)
                if peer.uid
                else self._account(limits.connections, _WATCHES_OF_ROOT)
            )
        return account

    def enter(self, peer: Peer, account: Account) -> bool:
        """Whether a connection may stay; it counts until `leave`, also while one that may not is being closed."""
        limits = self.limits
        room = limits.connections - (CONNECTIONS_FOR_ROOT if peer.uid else 0)
        stays = False
        if self.connections >= room or account.connections >= account.connections_max:
            self.tell(peer, Reason.CONNECTIONS)
        elif peer.uid and not account.arrivals.take():
            self.tell(peer, Reason.CONNECTION_RATE)
        else:
            stays = True
        self.connections += 1
        account.connections += 1
        return stays

    def charge(self, account: Account) -> None:
        """Who was turned away may not come back at once with the same."""
        account.arrivals.spend(_TURNED_AWAY_COSTS)

    def leave(self, account: Account) -> None:
        """Nothing is left of a connection."""
        self.connections -= 1
        account.connections -= 1

    def tell(self, peer: Peer, reason: Reason) -> None:
        """Counts who was turned away, and logs it if nothing was logged about this user lately."""
        self.turned_away[reason] += 1
        event = "peer_refused" if reason is Reason.NOT_ALLOWED else "peer_misbehaved"
        if not (count := self._repeats.due((event, peer.uid))):
            return
        if reason is Reason.NOT_ALLOWED:
            log.warning("peer_refused", pid=peer.pid, uid=peer.uid, program=_program(peer.pid), count=count)
        else:
            log.warning("peer_misbehaved", reason=str(reason), pid=peer.pid, uid=peer.uid, count=count)

    def tell_defect(self, peer: Peer, call: str, error: BaseException) -> None:
        """Logs that a call failed by a fault of the agent's own, if none was logged lately."""
        if count := self._repeats.due(("call_failed", peer.uid)):
            log.error("call_failed", call=call, exc_info=error, count=count)

    def _account(self, connections_max: int, watches_max: int = _WATCHES) -> Account:
        limits, clock = self.limits, self.clock
        return Account(
            connections_max,
            watches_max,
            calls=Allowance(clock, burst=2 * limits.calls_per_s, per_s=limits.calls_per_s),
            answer_bytes=Allowance(clock, burst=_ANSWER_BYTES_BURST, per_s=_ANSWER_BYTES_PER_S),
            arrivals=Allowance(clock, burst=limits.connections_per_uid, per_s=_ARRIVALS_PER_S),
        )

    def _forget_absent(self) -> None:
        if len(self._accounts) >= self.limits.connections:
            self._accounts = {uid: account for uid, account in self._accounts.items() if account.connections}


def _groups(connected: Any) -> frozenset[int]:
    """All groups of the peer; SO_PEERCRED has the primary one alone."""
    try:
        packed = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"{len(packed) // 4}I", packed))


def _program(pid: int) -> str:
    """The program of a process, as far as the agent may see it; empty if the process is gone."""
    process = Path("/proc") / str(pid)
    try:
        return str((process / "exe").readlink())
    except OSError:
        pass
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return ""
