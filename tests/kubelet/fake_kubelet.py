"""A kubelet in memory that speaks gRPC as the real one does: for its restarts and questions that a test chooses."""

import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from vdpa_agent.kubelet.pb import device_plugin_pb2 as pb
from vdpa_agent.kubelet.pb import pod_resources_pb2 as resources

HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"


class Plugin:
    """What the kubelet knows of one plugin.

    Attributes:
        request: how it registered.
        lists: every list of devices that came, the newest last.
    """

    def __init__(self, directory: Path, request: pb.RegisterRequest) -> None:
        self.request = request
        self.lists: list[dict[str, str]] = []
        self.nodes: dict[str, list[int]] = {}
        self.ended = False
        self._channel = grpc.insecure_channel(
            f"unix:{directory / request.endpoint}", options=[("grpc.default_authority", "localhost")]
        )
        self.options = self.call("GetDevicePluginOptions", pb.Empty(), pb.DevicePluginOptions)
        self._watch = threading.Thread(target=self._follow, daemon=True)
        self._watch.start()

    def call(self, method: str, request: Any, answer: Any, *, timeout_s: float | None = 30.0) -> Any:
        ask: Any = self._channel.unary_unary(
            f"/v1beta1.DevicePlugin/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return ask(request, timeout=timeout_s)

    def allocate(self, *addresses: str, timeout_s: float | None = 30.0) -> pb.ContainerAllocateResponse:
        request = pb.AllocateRequest()
        request.container_requests.add(devices_ids=addresses)
        answer = self.call("Allocate", request, pb.AllocateResponse, timeout_s=timeout_s)
        (container,) = answer.container_responses
        return container  # type: ignore[no-any-return]

    def preferred(self, available: list[str], size: int, must: tuple[str, ...] = ()) -> list[str]:
        request = pb.PreferredAllocationRequest()
        request.container_requests.add(available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size)
        answer = self.call("GetPreferredAllocation", request, pb.PreferredAllocationResponse)
        return list(answer.container_responses[0].deviceIDs)

    def forget(self) -> None:
        """Leaves the plugin, as a kubelet does that has trouble with it."""
        self._channel.close()

    def _follow(self) -> None:
        watch = self._channel.unary_stream(
            "/v1beta1.DevicePlugin/ListAndWatch",
            request_serializer=pb.Empty.SerializeToString,
            response_deserializer=pb.ListAndWatchResponse.FromString,
        )
        with suppress(grpc.RpcError, ValueError):
            for answer in watch(pb.Empty()):
                self.nodes = {device.ID: [node.ID for node in device.topology.nodes] for device in answer.devices}
                self.lists.append({device.ID: device.health for device in answer.devices})
        self.ended = True


class Kubelet:
    """Keeps its directory as the real one does: it empties it when it starts.

    Attributes:
        root: what --kubelet-dir is to name.
        plugins: the newest registration of each resource.
        registrations: all of them, in order.
        refuses: why a registration is refused; empty: it is not.
        pods: which pod has which devices: (namespace, pod, container, resource, addresses).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "device-plugins"
        self.plugins: dict[str, Plugin] = {}
        self.registrations: list[str] = []
        self.refuses = ""
        self.pods: list[tuple[str, str, str, str, tuple[str, ...]]] = []
        self._server: grpc.Server | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.root / "pod-resources").mkdir(exist_ok=True)
        for path in self.directory.iterdir():
            path.unlink()
        server = self._server = grpc.server(ThreadPoolExecutor(8))
        _serve(server, "v1beta1.Registration", "Register", pb.RegisterRequest, self._register)
        _serve(server, "v1.PodResourcesLister", "List", resources.ListPodResourcesRequest, self._list)
        for path in (self.directory / "kubelet.sock", self.root / "pod-resources" / "kubelet.sock"):
            path.unlink(missing_ok=True)
            server.add_insecure_port(f"unix:{path}")
        server.start()

    def stop(self) -> None:
        if self._server is not None:
            for plugin in self.plugins.values():
                plugin.forget()
            self.plugins.clear()
            self._server.stop(None).wait()
            self._server = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def make_directory_anew(self) -> None:
        """As an operator does who cleans up: the directory is another one then."""
        self.stop()
        shutil.rmtree(self.directory)
        self.start()

    def _register(self, request: pb.RegisterRequest, context: grpc.ServicerContext) -> pb.Empty:
        if self.refuses:
            context.abort(grpc.StatusCode.UNKNOWN, self.refuses)
        # The real one dials the plugin before it answers too.
        self.plugins[request.resource_name] = Plugin(self.directory, request)
        self.registrations.append(request.resource_name)
        return pb.Empty()

    def _list(self, _request: Any, _context: grpc.ServicerContext) -> resources.ListPodResourcesResponse:
        answer = resources.ListPodResourcesResponse()
        for namespace, name, container, resource, addresses in self.pods:
            pod = answer.pod_resources.add(namespace=namespace, name=name)
            pod.containers.add(name=container).devices.add(resource_name=resource, device_ids=addresses)
        return answer


@contextmanager
def kubelet(root: Path) -> Iterator[Kubelet]:
    """A kubelet that runs."""
    one = Kubelet(root)
    one.start()
    try:
        yield one
    finally:
        one.stop()


def _serve(server: grpc.Server, service: str, method: str, request: Any, handler: Callable[..., Any]) -> None:
    handlers: dict[str, Any] = {
        method: grpc.unary_unary_rpc_method_handler(
            handler, request.FromString, lambda answer: answer.SerializeToString()
        )
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
