"""Control: the client end of vdpad's JSON-RPC channel."""

import asyncio
import json
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from vdpa_agent.errors import DaemonLost, RequestRefused

_REPLY_MAX_BYTES: Final = 4 * 1024 * 1024
"""No reply is longer: 1,023 devices of `device.list` need less than 512 KiB."""

Notify = Callable[[str, dict[str, Any]], None]


class Control:
    """Speaks JSON-RPC 2.0, one object a line, over a connected stream socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, notify: Notify) -> None:
        """Sends nothing yet.

        Args:
            reader: the stream from the daemon.
            writer: the stream to it.
            notify: called with the method and the parameters of each notification.
        """
        self._reader = reader
        self._writer = writer
        self._notify = notify
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def call(self, method: str, params: dict[str, str] | None = None, *, timeout_s: float | None) -> Any:
        """Asks the daemon and returns its result. Cancellation forgets the request; the daemon still does it.

        Args:
            method: what to do.
            params: with what.
            timeout_s: how long the answer may take, in seconds; None where somebody else watches over the daemon.

        Raises:
            RequestRefused: the daemon answered with an error.
            DaemonLost: the channel closed, or no answer came in `timeout_s`.
        """
        identifier = next(self._ids)
        request = {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params or {}}
        reply = self._waiting[identifier] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(json.dumps(request).encode() + b"\n")
                await self._writer.drain()
                return await reply
        except TimeoutError as error:
            message = f"vdpad did not answer {method} within {timeout_s:g} s"
            raise DaemonLost(message) from error
        except OSError as error:
            message = "vdpad closed its control channel"
            raise DaemonLost(message) from error
        finally:
            del self._waiting[identifier]

    async def run(self) -> None:
        """Takes in answers and notifications until the channel closes.

        Raises:
            DaemonLost: always, at the end; waiting calls raise it too.
        """
        lost = DaemonLost("vdpad closed its control channel")
        try:
            while line := await self._reader.readline():
                self._take(line)
        except (ValueError, TypeError, RecursionError, OSError) as error:  # no JSON-RPC, a line too long, a reset
            lost = DaemonLost(f"vdpad broke its control channel: {error}")
        finally:
            for reply in self._waiting.values():
                if not reply.done():
                    reply.set_exception(lost)
        raise lost

    def close(self) -> None:
        """Closes this end, which tells vdpad to end."""
        self._writer.close()

    def _take(self, line: bytes) -> None:
        message = json.loads(line)
        if not isinstance(message, dict):
            text = "not an object"
            raise ValueError(text)  # noqa: TRY004
        if "method" in message:
            params = message.get("params")
            self._notify(str(message["method"]), params if isinstance(params, dict) else {})
            return
        reply = self._waiting.get(message.get("id", 0))
        if reply is None or reply.done():
            return  # the caller gave up
        error = message.get("error")
        if isinstance(error, dict):
            reply.set_exception(RequestRefused(int(error.get("code", 0)), str(error.get("message", "no reason given"))))
        else:
            reply.set_result(message.get("result"))


async def open_control(end: Any, notify: Notify) -> Control:
    """Makes a Control on this end of a socketpair, and takes it over."""
    reader, writer = await asyncio.open_connection(sock=end, limit=_REPLY_MAX_BYTES)
    return Control(reader, writer, notify)
