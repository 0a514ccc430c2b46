"""Control: the client end of vdpad's JSON-RPC channel."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, Final

from vdpa_agent.daemon.messages import LINE_MAX_BYTES, Answer, Message, Notification, Refusal, parse_message
from vdpa_agent.errors import DaemonLost, RequestRefused, Unanswered
from vdpa_agent.model.allowance import Allowance

_CHUNK_BYTES: Final = 64 * 1024
"""So much is read at once; twice as much waits at most, so that vdpad's own bound on what is unsent holds."""

_BURST: Final = 4096
"""Lines that nobody asked for, however fast they come: each of 1,023 front ends connects, configures and parts."""

_PER_S: Final = 500
"""Such lines in a second in the long run; vdpad waits where it has more to say."""

_LINE_BYTES: Final = 1024
"""A line that is longer counts as one more for each such length."""

Notify = Callable[[str, dict[str, Any]], None]


class Control:
    """Speaks JSON-RPC 2.0, one object a line, over a connected stream socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, notify: Notify) -> None:
        """Sends nothing yet.

        Args:
            reader: the stream from the daemon.
            writer: the stream to it.
            notify: called with the method and the parameters of each notification, see messages.Notification.
        """
        self._reader = reader
        self._writer = writer
        self._notify = notify
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._passed: dict[int, Callable[[], None]] = {}
        self._rest = bytearray()
        self._allowance = Allowance(asyncio.get_running_loop().time, burst=_BURST, per_s=_PER_S)

    async def call(
        self,
        method: str,
        params: Mapping[str, str] | None = None,
        *,
        timeout_s: float,
        passed: Callable[[], None] | None = None,
    ) -> Any:
        """Asks the daemon and returns its raw result. Cancellation forgets the request; the daemon still does it.

        Args:
            method: what to do.
            params: with what.
            timeout_s: how long the answer may take, in seconds.
            passed: called as soon as a later request has been answered: vdpad answers in order, so this one keeps it
                from nothing any more.

        Returns:
            Any JSON; the functions of daemon/answers.py make a value of it that can be relied on.

        Raises:
            RequestRefused: the daemon answered with an error.
            Unanswered: no answer came in `timeout_s`.
            DaemonLost: the channel closed.
        """
        identifier = next(self._ids)
        request = {"jsonrpc": "2.0", "id": identifier, "method": method, "params": dict(params or {})}
        reply = self._waiting[identifier] = asyncio.get_running_loop().create_future()
        if passed is not None:
            self._passed[identifier] = passed
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(json.dumps(request).encode() + b"\n")
                await self._writer.drain()
                return await reply
        except TimeoutError as error:
            message = f"vdpad did not answer {method} within {timeout_s:g} s"
            raise Unanswered(message) from error
        except OSError as error:
            message = "vdpad closed its control channel"
            raise DaemonLost(message) from error
        finally:
            del self._waiting[identifier]
            self._passed.pop(identifier, None)

    async def run(self) -> None:
        """Takes in answers and notifications until the channel closes.

        Raises:
            DaemonLost: always, at the end; waiting calls raise it too.
        """
        lost = DaemonLost("vdpad closed its control channel")
        try:
            while chunk := await self._reader.read(_CHUNK_BYTES):
                for line in self._complete(chunk):
                    await self._take(parse_message(line), len(line))
        except (ValueError, OSError) as error:  # no message, a line too long, a reset
            lost = DaemonLost(f"vdpad broke its control channel: {error}")
        finally:
            for reply in self._waiting.values():
                if not reply.done():  # its caller has given up, and could not yet say so
                    reply.set_exception(lost)
        raise lost

    def close(self) -> None:
        """Closes this end, which makes vdpad end."""
        self._writer.close()

    def _complete(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that a piece of the stream completes.

        Raises:
            ValueError: a line is too long.
        """
        *lines, end = chunk.split(b"\n")
        for line in lines:
            yield bytes(self._rest) + line
            self._rest.clear()
        self._rest += end
        if len(self._rest) > LINE_MAX_BYTES:
            text = f"a line of more than {LINE_MAX_BYTES} bytes"
            raise ValueError(text)

    async def _take(self, message: Message, size_bytes: int) -> None:
        """Hands a message on; one that nobody asked for costs, and waits for its turn."""
        if isinstance(message, Notification):
            self._notify(message.method, message.params)
        elif message.request is None:
            text = f"it could not read a request: {message.reason}"
            raise ValueError(text)
        elif self._settle(message.request, message):
            return
        self._allowance.spend(1 + size_bytes // _LINE_BYTES)
        # Others have their turn after each of a flood of lines.
        await asyncio.sleep(self._allowance.wait_s())

    def _settle(self, identifier: int, message: Answer | Refusal) -> bool:
        """Ends the call with that id; False if there is none, or its caller gave up."""
        reply = self._waiting.get(identifier)
        if reply is None or reply.done():
            return False
        for earlier in [other for other in self._passed if other < identifier]:
            self._passed.pop(earlier)()
        if isinstance(message, Refusal):
            reply.set_exception(RequestRefused(message.code, message.reason))
        else:
            reply.set_result(message.result)
        return True


async def open_control(end: Any, notify: Notify) -> Control:
    """Makes a Control on this end of a socketpair, and takes it over."""
    reader, writer = await asyncio.open_connection(sock=end, limit=_CHUNK_BYTES)
    return Control(reader, writer, notify)
