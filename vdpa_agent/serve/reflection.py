"""Reflection: describes the services to clients that know none of them, in both versions of its protocol."""

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from grpclib.const import Cardinality, Handler, Status
from grpclib.reflection.v1 import reflection_pb2 as v1
from grpclib.reflection.v1alpha import reflection_pb2 as v1alpha

from vdpa_agent.rpc.stream import Stream

_VERSIONS: Final = {"grpc.reflection.v1": v1, "grpc.reflection.v1alpha": v1alpha}


class Reflection:
    """Answers from the descriptors that generated code brings along."""

    def __init__(self, services: Collection[Any]) -> None:
        """Takes the services that are described; it is one more itself.

        Args:
            services: what can be called, as grpclib generates it.
        """
        paths = [path for service in services for path in service.__mapping__()]
        self._names = list(dict.fromkeys(path.split("/")[1] for path in paths))
        self._pool = Default()

    def __mapping__(self) -> dict[str, Handler]:
        """The method of each version, as generated code would name it: that imports a client."""
        return {
            f"/{package}.ServerReflection/ServerReflectionInfo": Handler(
                partial(self._answer_all, messages),
                Cardinality.STREAM_STREAM,
                messages.ServerReflectionRequest,
                messages.ServerReflectionResponse,
            )
            for package, messages in _VERSIONS.items()
        }

    async def _answer_all(self, messages: Any, stream: Stream[Any, Any]) -> None:
        async for request in stream:
            answer = messages.ServerReflectionResponse(valid_host=request.host, original_request=request)
            self._answer(request, answer)
            await stream.send_message(answer)

    def _answer(self, request: Any, answer: Any) -> None:
        pool, asked = self._pool, request.WhichOneof("message_request")
        find: dict[str, Callable[[Any], None]] = {
            "file_by_filename": lambda name: self._describe(answer, pool.FindFileByName(name)),
            "file_containing_symbol": lambda name: self._describe(answer, pool.FindFileContainingSymbol(name)),
            "file_containing_extension": lambda extension: self._describe(
                answer,
                pool.FindExtensionByNumber(
                    pool.FindMessageTypeByName(extension.containing_type), extension.extension_number
                ).file,  # type: ignore[attr-defined]  # the stubs forget it
            ),
            "all_extension_numbers_of_type": lambda name: self._number(answer, name),
            "list_services": lambda _: self._list(answer, self._names),
        }
        if asked is None:
            _refuse(answer, Status.INVALID_ARGUMENT, "the request asks nothing")
            return
        try:
            find[asked](getattr(request, asked))
        except (KeyError, ValueError):
            _refuse(answer, Status.NOT_FOUND, "not found")

    def _describe(self, answer: Any, file: Any) -> None:
        """A file with all that it imports, so that a client need not ask again."""
        described: dict[str, bytes] = {}
        waiting = [file]
        while waiting:
            file = waiting.pop(0)
            if file.name not in described:
                description = FileDescriptorProto()
                file.CopyToProto(description)
                described[file.name] = description.SerializeToString()
                waiting += file.dependencies
        answer.file_descriptor_response.file_descriptor_proto.extend(described.values())

    def _number(self, answer: Any, name: str) -> None:
        message = self._pool.FindMessageTypeByName(name)
        found = answer.all_extension_numbers_response
        found.base_type_name = message.full_name
        found.extension_number.extend(extension.number for extension in self._pool.FindAllExtensions(message))

    @staticmethod
    def _list(answer: Any, names: Iterable[str]) -> None:
        for name in names:
            answer.list_services_response.service.add(name=name)


def _refuse(answer: Any, code: Status, message: str) -> None:
    answer.error_response.error_code = code.value
    answer.error_response.error_message = message
