"""structlog set-up: one event a line on standard error, as text or JSON."""

import logging
import sys
from typing import Any, Final

import structlog

from vdpa_agent.config import LogConfig, LogFormat

_NUMBERS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def set_up_logs(config: LogConfig) -> None:
    """Configures structlog, and what libraries log through the standard library, once per process."""
    as_text = config.format is LogFormat.TEXT or (config.format is LogFormat.AUTO and sys.stderr.isatty())
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    shared: list[Any] = [structlog.processors.add_log_level, stamp]
    renderer: Any
    if as_text:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    else:
        shared.append(structlog.processors.format_exc_info)
        renderer = structlog.processors.JSONRenderer()
    level = _NUMBERS[config.level]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[_library, _strip, renderer])
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


def _library(_logger: Any, _name: str, event: Any) -> Any:
    """Gives a library's line a constant event of its own, with the words as a field."""
    record: logging.LogRecord = event["_record"]
    event["source"] = record.name
    event["line"] = event["event"]
    event["event"] = "library_output"
    return event


def _strip(logger: Any, name: str, event: Any) -> Any:
    return structlog.stdlib.ProcessorFormatter.remove_processors_meta(logger, name, event)
