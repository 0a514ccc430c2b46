"""Peers: who is at the other end, as the kernel says, and what each user has open."""

import os
import socket
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from vdpa_agent.config import LimitsConfig
from vdpa_agent.serve.limits import Reason, TokenBucket

_TOLD_EVERY_S: Final = 10.0
"""The least time between two log lines of a kind about one user."""

_ARRIVALS_PER_S: Final = 100
"""Connections that a user other than root may make for long, a second; as many as may be open at once."""

_TURNED_AWAY_COSTS: Final = 10
"""As how many new connections one counts that was turned away."""

_TOLD_MAX: Final = 4_096
"""Users whose last log line is remembered; beyond, who has just been told of is forgotten with the rest."""

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
        calls: the rate of new calls.
        arrivals: the rate of new connections, which does not bind root.
    """

    __slots__ = ("arrivals", "calls", "connections", "connections_max", "open_calls")

    def __init__(self, connections_max: int, calls: TokenBucket, arrivals: TokenBucket) -> None:
        self.connections = 0
        self.connections_max = connections_max
        self.open_calls = 0
        self.calls = calls
        self.arrivals = arrivals


class Peers:
    """Keeps the accounts, counts who is turned away, and tells the log about it, seldom.

    Attributes:
        limits: the limits in force.
        turned_away: how many calls and connections were, by reason; all reasons are in it from the start.
        connections: how many are open.
    """

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float]) -> None:
        self.limits = limits
        self.turned_away: Counter[Reason] = Counter(dict.fromkeys(Reason, 0))
        self._clock = clock
        self._own_uid = os.geteuid()
        self._accounts: dict[int, Account] = {}
        self._strangers = self._account(max(1, limits.connections_per_uid // 4))
        self.connections = 0
        self._told: dict[tuple[str, int], float] = {}

    def identify(self, connected: Any) -> Peer:
        """Who is at the other end of a connected unix socket."""
        pid, uid, gid = _CREDENTIALS.unpack(
            connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        allowed = uid in (0, self._own_uid) or uid in self.limits.allow_uids or gid in self.limits.allow_gids
        if not allowed and self.limits.allow_gids:
            allowed = not self.limits.allow_gids.isdisjoint(_groups(connected))
        return Peer(pid, uid, gid, allowed)

    def enter(self, peer: Peer) -> Account | None:
        """The account of a peer that connected; None if it has to leave."""
        limits = self.limits
        account = self._strangers
        if peer.allowed:
            found = self._accounts.get(peer.uid)
            if found is None:
                self._forget_absent()
                most = limits.connections_per_uid if peer.uid else limits.connections
                found = self._accounts[peer.uid] = self._account(most)
            account = found
        room = limits.connections - (limits.connections_for_root if peer.uid else 0)
        if self.connections >= room or account.connections >= account.connections_max:
            self.tell(peer, Reason.CONNECTIONS)
            return None
        if peer.uid and not account.arrivals.take():
            self.tell(peer, Reason.CONNECTION_RATE)
            return None
        self.connections += 1
        account.connections += 1
        return account

    def charge(self, account: Account) -> None:
        """Who was turned away may not come back at once with the same."""
        account.arrivals.pay(_TURNED_AWAY_COSTS)

    def leave(self, account: Account) -> None:
        """A connection that had entered is gone."""
        self.connections -= 1
        account.connections -= 1

    def tell(self, peer: Peer, reason: Reason) -> None:
        """Counts who was turned away, and logs it if nothing was logged about this user lately."""
        self.turned_away[reason] += 1
        if not self._may_tell("peer_refused" if reason is Reason.NOT_ALLOWED else "peer_misbehaved", peer.uid):
            return
        if reason is Reason.NOT_ALLOWED:
            log.warning("peer_refused", pid=peer.pid, uid=peer.uid, program=_program(peer.pid))
        else:
            log.warning("peer_misbehaved", reason=str(reason), pid=peer.pid, uid=peer.uid)

    def tell_defect(self, peer: Peer, call: str, error: BaseException) -> None:
        """Logs that a call failed by a fault of the agent's own, if none was logged lately."""
        if self._may_tell("call_failed", peer.uid):
            log.error("call_failed", call=call, exc_info=error)

    def _may_tell(self, event: str, uid: int) -> bool:
        now = self._clock()
        last = self._told.get((event, uid))
        if last is not None and now - last < _TOLD_EVERY_S:
            return False
        if len(self._told) >= _TOLD_MAX:
            self._told.clear()
        self._told[event, uid] = now
        return True

    def _account(self, connections_max: int) -> Account:
        limits = self.limits
        calls = TokenBucket(limits.calls_per_s, 2 * limits.calls_per_s, self._clock)
        return Account(connections_max, calls, TokenBucket(_ARRIVALS_PER_S, limits.connections_per_uid, self._clock))

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
