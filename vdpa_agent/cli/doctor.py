"""doctor: what is right and wrong on this node, printed with what fixes it."""

import argparse
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from vdpa_agent.cli.node import ask_agent, look_around
from vdpa_agent.cli.output import print_json, print_line
from vdpa_agent.config import (
    DEFAULT_PCI_LIST,
    DEFAULT_SOCKET_DIRECTORY,
    DEFAULT_SOCKET_LIST,
    AgentConfig,
    DaemonConfig,
    DaemonMode,
    FilesConfig,
    Memory,
    ServeConfig,
)
from vdpa_agent.errors import LibraryMissing
from vdpa_agent.model.daemon import VhostMode
from vdpa_agent.model.diagnosis import Check, Diagnosis, diagnose
from vdpa_agent.model.node import LibraryFacts
from vdpa_agent.model.pci import parse_pci_address
from vdpa_agent.model.text import printable
from vdpa_agent.node.system import lacks
from vdpa_agent.rpc.nghttp2 import LIBRARY, load

_RIGHT: Final = "ok"
_RESULT_WIDTH: Final = len("blocks")

T = TypeVar("T")


def doctor(options: argparse.Namespace) -> int:
    """Looks around and prints; returns 0 if a VF could be served, else 1."""
    only = tuple(dict.fromkeys(parse_pci_address(text) for text in options.addresses))
    # What is wrong with the options must be told before anybody is asked.
    _config(options, {})
    told = ask_agent(options.address, timeout_s=options.timeout)
    config = _config(options, told.settings)
    node = look_around(config, told, only)
    sysfs = config.daemon.sysfs if node.program else None
    diagnosis = diagnose(node._replace(http2=_http2(), lacks=lacks(sysfs)))
    if options.output == "json":
        print_json(_as_dict(diagnosis))
    else:
        _print(diagnosis)
    return 0 if diagnosis.could_be_served else 1


def _http2() -> LibraryFacts:
    """What an agent that is started here would speak HTTP/2 with."""
    try:
        return LibraryFacts(f"{LIBRARY} {load().version}")
    except LibraryMissing as error:
        return LibraryFacts(LIBRARY, error.problem, error.remedy)


def _config(options: argparse.Namespace, settings: Mapping[str, str]) -> AgentConfig:
    """The settings that count: the options given here, then those of the running agent, then the defaults."""

    def setting(name: str, kind: Callable[[str], T], default: T) -> T:
        given: Any = getattr(options, name.replace("-", "_"), None)
        if given is not None:
            return given  # type: ignore[no-any-return]
        # Another version of the agent may know values that this one does not.
        with suppress(KeyError, ValueError):
            return kind(settings[name])
        return default

    command = settings.get("daemon-command", "")
    return AgentConfig(
        files=FilesConfig(
            pci_list=setting("pci-list", Path, DEFAULT_PCI_LIST),
            socket_list=setting("socket-list", Path, DEFAULT_SOCKET_LIST),
            resource_config=setting("resource-config", _path_or_none, None),
        ),
        daemon=DaemonConfig(
            mode=DaemonMode.COMMAND if command else setting("daemon", DaemonMode, DaemonMode.AUTO),
            program=setting("vdpad", str, "vdpad"),
            command=command,
            simulate=options.simulate or settings.get("simulate") == "true",
            sysfs=setting("sysfs", Path, Path("/sys")),
            socket_dir=setting("socket-dir", Path, DEFAULT_SOCKET_DIRECTORY),
            socket_mode=setting("socket-mode", lambda text: int(text, 8), 0o660),
            socket_owner=settings.get("socket-owner") or None,
            socket_group=settings.get("socket-group") or None,
            vhost_mode=setting("vhost-mode", VhostMode, VhostMode.SERVER),
            memory=setting("memory", Memory, Memory.AUTO),
        ),
        serve=ServeConfig(listen=options.address),
    )


def _path_or_none(text: str) -> Path | None:
    return Path(text) if text else None


def _result(check: Check) -> str:
    return check.severity.value if check.severity else _RIGHT


def _print(diagnosis: Diagnosis) -> None:
    """One check a line, what fixes it below."""
    width = max(len(printable(check.subject)) for check in diagnosis.checks)
    for check in diagnosis.checks:
        print_line(f"{_result(check):{_RESULT_WIDTH}}  {printable(check.subject):{width}}  {check.told}")
        if check.remedy:
            print_line(f"{'':{_RESULT_WIDTH}}  {'':{width}}    fix: {check.remedy}")
    print_line(f"{diagnosis.could_be_served} of {diagnosis.devices} devices could be served")


def _as_dict(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "devices": diagnosis.devices,
        "could_be_served": diagnosis.could_be_served,
        "checks": [
            {"subject": check.subject, "result": _result(check), "told": check.told, "remedy": check.remedy}
            for check in diagnosis.checks
        ],
    }
