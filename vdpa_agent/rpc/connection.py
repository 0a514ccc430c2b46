"""One connection: a socket, the session on it, and what its peer may take before it has to leave."""

import asyncio
from collections.abc import Callable

from vdpa_agent.node.guarded import DescriptorsPassed, GuardedSocket
from vdpa_agent.rpc.calls import Calls
from vdpa_agent.rpc.frames import Frames
from vdpa_agent.rpc.limits import Patience, Reason
from vdpa_agent.rpc.nghttp2 import ErrorCode
from vdpa_agent.rpc.peers import Account, Peer, Peers
from vdpa_agent.rpc.room import Room
from vdpa_agent.rpc.services import Services
from vdpa_agent.rpc.session import GATHERED_BYTES


class Connection:
    """One connection of one peer.

    It is closed with a GOAWAY as soon as the peer leaves the protocol or takes too much, and the reason is counted. A
    peer that does not read what it is sent is not read either: so nothing gathers here.
    """

    def __init__(
        self,
        connected: GuardedSocket,
        services: Services,
        peers: Peers,
        peer: Peer,
        account: Account,
        *,
        room: Room,
        patience: Patience,
        gone: Callable[["Connection"], None],
    ) -> None:
        """Does nothing yet.

        Args:
            connected: the socket, which does not block.
            services: what can be called.
            peers: the accounts.
            peer: who has connected.
            account: the peer's.
            room: where all connections read to, one at a time.
            patience: how long the peer may take.
            gone: is called once, when nothing is left of the connection but its socket, which may still be closing.
        """
        self._loop = asyncio.get_running_loop()
        self._clock = peers.clock
        self._socket = connected
        self._peers = peers
        self._peer = peer
        self._account = account
        self._room = room
        self._patience = patience
        self._gone = gone
        self._frames = Frames(self._clock)
        self._calls = Calls(services, peers, peer, account, frames=self._frames, flush=self._flush)
        self._made_s = self._heard_s = self._clock()
        self._blocked_s: float | None = None
        self._stalls_s: float | None = None
        self._unsent = b""
        self._parting = False
        self._over = False
        self._reads = False
        self._waits = False

    def start(self) -> None:
        """Greets the peer, which has something to do then, and reads what it sends: it does not wait for that."""
        self._flush()
        if not self._over:
            self._read(wanted=True)
            self._take_what_came()

    @property
    def running(self) -> list["asyncio.Task[None]"]:
        """The calls that have not ended."""
        return self._calls.running

    def look(self, now_s: float) -> None:
        """Closes a connection that takes too long at something; to be called about once a second."""
        patience = self._patience
        if self._parting or (self._waits and self._socket.has_left()):
            self._end()
        elif not self._calls.greeted and now_s - self._made_s > patience.preface_s:
            self._turn_away(Reason.PREFACE, ErrorCode.SETTINGS_TIMEOUT)
        elif self._is_unread(now_s):
            self._blame(Reason.UNREAD)
            self._end()  # it will not read any last words either
        elif not self._calls.busy and self._reads and now_s - self._heard_s > patience.idle_s:
            self._peers.turned_away[Reason.IDLE] += 1
            self._part(ErrorCode.NO_ERROR)

    def go_away(self) -> None:
        """Asks the peer to make no more calls here; those that run go on."""
        if not self._parting:
            self._calls.say_goaway()
            self._flush()

    def close(self) -> None:
        """Closes as soon as what was said is sent."""
        self._part(None)

    def abort(self) -> None:
        """Closes, whether the peer has read everything or not."""
        self._end()

    def turn(self) -> None:
        """It is this connection's turn again to make calls."""
        self._waits = False
        if not self._over and self._blocked_s is None:
            self._take_what_came(in_turn=True)
            self._read_on()

    def _is_unread(self, now_s: float) -> bool:
        """Whether the peer has long taken nothing of what there is for it."""
        if self._blocked_s is not None:
            self._stalls_s = self._blocked_s
        elif not self._calls.stalls():
            self._stalls_s = None
        elif self._stalls_s is None:
            self._stalls_s = now_s
        return self._stalls_s is not None and now_s - self._stalls_s > self._patience.unread_s

    # ---- bytes in ----

    def _take_what_came(self, *, in_turn: bool = False) -> None:
        if self._calls.made and not in_turn and self._account.turns.come_first():
            # The first call of a connection never waits: a client that makes one is not kept waiting by those of many.
            self._wait()
            return
        try:
            size = self._socket.recv_into(self._room.bytes, self._room.turn_bytes if in_turn else 0)
        except BlockingIOError:
            return
        except DescriptorsPassed:
            self._blame(Reason.DESCRIPTORS)
            size = 0
        except OSError:
            size = 0
        if not size or self._parting:
            self._end()
            return
        self._heard_s = self._clock()
        too_much = self._frames.count(bytes(self._room.bytes[:size]))
        if too_much is None:
            self._take_in(size)
        else:
            self._turn_away(*too_much)

    def _wait(self) -> None:
        """Reads again when it is this connection's turn, unless its peer has left."""
        if self._socket.has_left():
            self._end()
            return
        self._peers.tell(self._peer, Reason.CALL_RATE)
        self._read(wanted=False)
        self._waits = True
        self._account.turns.wait(self)

    def _take_in(self, size: int) -> None:
        """Makes calls of what was read."""
        calls = self._calls
        goes_on = calls.receive(self._room.address, size)
        if not goes_on:  # the library's session is at its end, and says no more
            if calls.defect is not None:
                self._peers.tell_defect(self._peer, "HTTP/2", calls.defect)
            else:
                self._blame(Reason.PROTOCOL)
            self._end()
        elif calls.too_much is not None:
            self._turn_away(*calls.too_much)
        else:
            calls.start()
            self._flush()

    def _read_on(self) -> None:
        if not (self._over or self._waits or self._is_blocked()):
            self._read(wanted=True)

    def _read(self, *, wanted: bool) -> None:
        if wanted != self._reads:
            self._reads = wanted
            if wanted:
                self._loop.add_reader(self._socket, self._take_what_came)
            else:
                self._loop.remove_reader(self._socket)

    # ---- bytes out ----

    def _flush(self) -> None:
        """Sends what there is, as far as the peer reads it."""
        if self._blocked_s is not None or self._over:
            return
        out = self._calls.to_send()
        if out and not self._sent(out):
            return
        if self._calls.defect is not None:
            self._peers.tell_defect(self._peer, "HTTP/2", self._calls.defect)
            self._end()
        elif self._calls.is_over:
            if not self._calls.parting:
                self._blame(Reason.PROTOCOL)  # the library has said GOAWAY
            self._end()

    def _sent(self, out: bytes) -> bool:
        """Sends bytes; False: the connection has ended, or it has to wait, and does not read its peer meanwhile."""
        try:
            sent = self._socket.send(out)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end()
            return False
        self._unsent = out[sent:]
        if not self._unsent and len(out) < GATHERED_BYTES:
            return True
        if self._blocked_s is None:
            self._read(wanted=False)
            self._loop.add_writer(self._socket, self._go_on)
        self._blocked_s = self._clock()
        return False

    def _go_on(self) -> None:
        """The peer has read, or the others had their turn."""
        if self._unsent and not self._sent(self._unsent):
            return
        self._blocked_s = None
        self._loop.remove_writer(self._socket)
        self._flush()
        if self._parting and not self._is_blocked():
            self._end()
        self._read_on()

    def _is_blocked(self) -> bool:
        return self._blocked_s is not None

    # ---- the end ----

    def _blame(self, reason: Reason) -> None:
        self._peers.tell(self._peer, reason)
        self._peers.charge(self._account)

    def _turn_away(self, reason: Reason, code: ErrorCode) -> None:
        self._blame(reason)
        self._part(code)

    def _part(self, code: ErrorCode | None) -> None:
        """Closes the connection, with a last word that says why."""
        if self._over:
            return
        self._parting = self._calls.parting = True
        if code is not None:
            self._calls.terminate(code)
        self._flush()
        self._calls.end()
        if not self._is_blocked():
            self._end()

    def _end(self) -> None:
        """Nothing more is read, sent or answered."""
        if self._over:
            return
        self._over = self._parting = True
        self._read(wanted=False)
        if self._blocked_s is not None:
            self._loop.remove_writer(self._socket)
        self._calls.end()
        self._calls.free()
        self._socket.close()
        self._gone(self)
