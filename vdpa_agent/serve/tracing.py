"""Tracing: a span for each gRPC call, sent to the collector that the environment names."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog
from grpclib.const import Status
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from vdpa_agent import __version__
from vdpa_agent.rpc.handled import Call, Handled

_LAST_SPANS_S: Final = 1.0
"""How long the end of the agent waits for the last spans to be taken."""

_PARENT: Final = TraceContextTextMapPropagator()

_FAULTS: Final = frozenset(
    {
        Status.UNKNOWN,
        Status.DEADLINE_EXCEEDED,
        Status.UNIMPLEMENTED,
        Status.INTERNAL,
        Status.UNAVAILABLE,
        Status.DATA_LOSS,
    }
)
"""What the conventions of OpenTelemetry call the server's fault; the rest is the client's."""

log = structlog.get_logger(__name__)


@asynccontextmanager
async def tracing(handled: Handled) -> AsyncIterator[None]:
    """Makes spans of the calls that end while the context lasts; the SDK reads its own variables, OTEL_*."""
    resource = Resource({"service.name": "vdpa-agent", "service.version": __version__})
    provider = TracerProvider(resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("vdpa_agent", __version__)
    handled.watcher = lambda call: _record(tracer, call)
    log.info("tracing")
    try:
        yield
    finally:
        handled.watcher = None
        await _shut_down(provider)


def _record(tracer: Tracer, call: Call) -> None:
    """Makes the span of a call that has just ended."""
    ended_ns = time.time_ns()
    service, _, method = call.path.lstrip("/").rpartition("/")
    span = tracer.start_span(
        f"{service}/{method}",
        context=_PARENT.extract(call.trace),
        kind=SpanKind.SERVER,
        start_time=ended_ns - int(call.seconds * 1e9),
        attributes={
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "rpc.grpc.status_code": call.status.value,
        },
    )
    if call.status in _FAULTS:
        span.set_status(StatusCode.ERROR)
    span.end(ended_ns)


async def _shut_down(provider: TracerProvider) -> None:
    """Sends what is left; a collector that does not answer holds nobody up."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def shut_down() -> None:
        provider.shutdown()
        with suppress(RuntimeError):  # the loop was not waited for
            loop.call_soon_threadsafe(done.set)

    # Not by the loop's executor: the end of the loop waits for that.
    threading.Thread(target=shut_down, name="last spans", daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(_LAST_SPANS_S):
            await done.wait()
