"""Services: the methods that can be called, and the answers to calls that reach none of them."""

from collections.abc import Callable, Collection
from typing import Any, Final

from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError

from vdpa_agent.rpc.handled import Handled
from vdpa_agent.rpc.headers import Fields, is_grpc, status_headers, timeout_of
from vdpa_agent.rpc.limits import Reason
from vdpa_agent.rpc.nghttp2 import Block
from vdpa_agent.rpc.session import whole

_DOMAIN: Final = "vdpa-agent"

_REFUSALS: Final = {
    Reason.NOT_ALLOWED: (Status.PERMISSION_DENIED, "this user may not call; see --allow-uid, --allow-gid"),
    Reason.CALL_RATE: (Status.RESOURCE_EXHAUSTED, "this user asks too often"),
    Reason.OPEN_CALLS: (Status.RESOURCE_EXHAUSTED, "this user has too many open calls"),
    Reason.WATCHES: (Status.RESOURCE_EXHAUSTED, "this user watches too many streams"),
    Reason.ANSWER_BYTES: (Status.RESOURCE_EXHAUSTED, "this user gets too many bytes of answers a second"),
}
"""How calls are refused for what their user takes."""

NOT_POST: Final = Block([(b":status", b"405"), (b"allow", b"POST"), (b"content-type", b"text/plain")], kept=True)
SPEAKS_GRPC: Final = b"this socket speaks gRPC: ask it by vdpa-agent or grpcurl\n"
"""The answer to what is HTTP, but no call."""

_NOT_GRPC: Final = Block(
    [(b":status", b"415"), *status_headers(Status.UNKNOWN, "the content-type is not application/grpc")], kept=True
)
_NO_SUCH_METHOD: Final = whole(status_headers(Status.UNIMPLEMENTED, "there is no such method here"))
_BAD_TIMEOUT: Final = whole(status_headers(Status.INTERNAL, "the grpc-timeout is malformed"))


class Method:
    """One method.

    Attributes:
        path: its path.
        handler: what runs it, and the kinds of its messages.
        at_once: what may answer a request of it at once, both serialized; None: it has to be called.
        takes_several: whether a call of it has several requests.
        watches: whether a call of it gets several answers.
    """

    __slots__ = ("at_once", "handler", "path", "takes_several", "watches")

    def __init__(self, path: str, handler: Handler, at_once: Callable[[bytes], bytes | None] | None) -> None:
        self.path = path
        self.handler = handler
        self.at_once = at_once
        self.takes_several = handler.cardinality.client_streaming
        self.watches = handler.cardinality.server_streaming


class Services:
    """The methods of all services.

    Attributes:
        methods: the methods, by their path.
        handled: how their calls ended.
    """

    def __init__(self, services: Collection[Any]) -> None:
        """Takes services as grpclib generates them.

        A service that has an attribute `at_once` names in it, by the path of a method, what may answer a request of it
        at once, both serialized, or None where it has to be called. Such a method owes an answer: its bytes are not
        counted.
        """
        handlers = {path: handler for service in services for path, handler in service.__mapping__().items()}
        at_once = {path: answer for service in services for path, answer in getattr(service, "at_once", {}).items()}
        self.methods = {path.encode(): Method(path, handlers[path], at_once.get(path)) for path in handlers}
        self.handled = Handled({path: handler.cardinality for path, handler in handlers.items()})
        self._refused = {
            reason: whole(status_headers(code, message, _details(reason)))
            for reason, (code, message) in _REFUSALS.items()
        }

    def refusal(self, fields: Fields) -> Block | None:
        """The whole answer to a call by POST that is none of these services'; None for others."""
        if not is_grpc(fields):
            return _NOT_GRPC
        if fields[b":path"] not in self.methods:
            self.handled.add_unknown()
            return _NO_SUCH_METHOD
        try:
            timeout_of(fields)
        except ValueError:
            return _BAD_TIMEOUT
        return None

    def refused(self, reason: Reason) -> Block:
        """The whole answer to a call that is refused for what its user takes."""
        return self._refused[reason]


def error_of(reason: Reason) -> GRPCError:
    """The end of a call that has become too much."""
    return GRPCError(*_REFUSALS[reason], _details(reason))


def _details(reason: Reason) -> list[ErrorInfo]:
    return [ErrorInfo(reason=reason.upper(), domain=_DOMAIN)]
