"""Makes what the chart takes from the agent's options and what is rendered from the chart.

usage: python -m scripts.chart, as `make deploy` does
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from vdpa_agent.cli.parser import build_parser
from vdpa_agent.cli.values import path, permission_bits, seconds, seconds_or_none
from vdpa_agent.model.daemon import VhostMode

ROOT: Final = Path(__file__).resolve().parent.parent
CHART: Final = ROOT / "charts" / "vdpa-agent"
CASES: Final = ROOT / "tests" / "chart" / "values"
GOLDEN: Final = ROOT / "tests" / "chart" / "golden"
DEPLOY: Final = ROOT / "deploy"
TOOLS: Final = ROOT / "build" / "chart" / "bin"

CURRENT: Final = "1.37.0"
"""The Kubernetes that golden files and deploy/ are rendered for, where nothing else is said."""

OLD: Final = "1.15.0"
"""The last Kubernetes in which DaemonSets were a beta."""

PLAIN: Final = {
    "vdpa-agent.yaml": ("default.yaml", CURRENT),
    "vdpa-agent-privileged.yaml": ("privileged.yaml", CURRENT),
    "vdpa-agent-simulated.yaml": ("simulated.yaml", CURRENT),
    "vdpa-agent-serve-only.yaml": ("serve-only.yaml", CURRENT),
    "vdpa-agent-pre-1.16.yaml": ("privileged.yaml", OLD),
}
"""The manifests of deploy/: values and Kubernetes."""

ACCEPTED_BY: Final = {CURRENT: ("1.19.0", CURRENT), OLD: ("1.13.0", OLD)}
"""The first and the last Kubernetes that takes what is rendered for one."""

CHOSEN: Final = {"http_listen": "0.0.0.0:9917", "log_format": "json"}
"""Options for which the chart has a default of its own: in a pod, probes and Prometheus come by its address."""

DERIVED: Final = {
    "listen": "in `runDirectory`",
    "pci_list": "in `runDirectory`, or of `deviceList`",
    "socket_dir": "in `runDirectory`",
    "socket_list": "in `runDirectory`",
    "memory": "none without `hugepages`, else hugepages",
    "resource_config": "of `resourceConfig` or `resourceConfigMap`",
    "kubelet_dir": "/var/lib/kubelet with `devicePlugin.enabled`",
    "device_info_dir": "/var/run/k8s.cni.cncf.io/devinfo/dp with `devicePlugin.enabled`",
    "sysfs": "the node's where there are pools, else /sys",
}
"""Options that other values decide where they are not given."""

BEGIN: Final = "# <options>\n"
END: Final = "# </options>\n"


def run_options() -> list[argparse.Action]:
    """The options of `vdpa-agent run`."""
    commands = next(a for a in build_parser({})._actions if isinstance(a, argparse._SubParsersAction))  # noqa: SLF001
    return [action for action in commands.choices["run"]._actions if action.dest != "help"]  # noqa: SLF001


def key(action: argparse.Action) -> str:
    """The name of an option as a value of the chart: --socket-list is socketList."""
    return _camel(action.dest.replace("_", "-"))


def _camel(name: str) -> str:
    first, *rest = name.split("-")
    return first + "".join(word.capitalize() for word in rest)


def _is_several(action: argparse.Action) -> bool:
    return isinstance(action, argparse._AppendAction)  # noqa: SLF001


def option_schema(action: argparse.Action) -> dict[str, Any]:
    """What a value of an option must be; null leaves the option out."""
    schema = _value_schema(action)
    if _is_several(action):
        schema = {"type": "array", "items": schema}
    elif "enum" in schema:
        schema["enum"].append(None)
    else:
        schema["type"] = [schema["type"], "null"]
    return {"description": _help(action), **schema}


def _value_schema(action: argparse.Action) -> dict[str, Any]:
    kind: Any = getattr(action.type, "_kind", None)
    if action.nargs == 0:
        return {"type": "boolean"}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return {"enum": [member.value for member in kind]}
    by_kind: dict[Any, dict[str, Any]] = {
        permission_bits: {"type": "string", "pattern": "^0?[67][0-7]{2}$"},
        seconds: {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
        seconds_or_none: {"type": "number", "minimum": 0, "maximum": 86400},
        path: {"type": "string", "pattern": "^/"},
    }
    if kind in by_kind:
        return by_kind[kind]
    # The name of a user or a group would be looked up in the image.
    is_number = isinstance(action.default, int) or action.metavar in {"USER", "GROUP"}
    return {"type": "integer", "minimum": 0} if is_number else {"type": "string"}


def _type_name(action: argparse.Action) -> str:
    schema = _value_schema(action)
    name = {"integer": "int", "boolean": "bool"}.get(schema.get("type", "string"), schema.get("type", "string"))
    return f"list of {name}" if _is_several(action) else name


def _help(action: argparse.Action) -> str:
    text = (action.help or "").rpartition(" [")[0].replace(", a name or a number", ", a number")
    return re.sub(r"--([a-z-]+)", lambda option: f"`{_camel(option[1])}`", text)


def _default(action: argparse.Action) -> str:
    if action.dest in DERIVED:
        return DERIVED[action.dest]
    value = action.default
    if value is False:
        return "off"
    if value in (None, "", []):
        return "none"
    if action.metavar == "OCTAL":
        return f'"{value:04o}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def options_block() -> str:
    """The values below `config`, of which those that are null are left to the agent."""
    lines = ["config:"]
    for action in run_options():
        chosen = CHOSEN.get(action.dest)
        lines.append(f"  # -- ({_type_name(action)}) " + _help(action).replace("{", "`{").replace("}", "}`"))
        if not chosen:
            lines.append(f"  # @default -- {_default(action)}")
        value: object = chosen or ([] if _is_several(action) else None)
        lines.append(f"  {key(action)}: {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def values_text() -> str:
    """values.yaml, with the options as the agent has them."""
    text = (CHART / "values.yaml").read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    return head + begin + options_block() + end + tail


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def schema_text() -> str:
    """values.schema.json: everything that is not named is refused."""
    text = {"type": "string"}
    flag = {"type": "boolean"}
    number = {"type": "integer", "minimum": 0}
    texts = {"type": "object", "additionalProperties": text}
    free = {"type": "object"}
    quantities = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
    seconds = {"type": "integer", "minimum": 1}
    probe = _object(
        dict.fromkeys(("periodSeconds", "timeoutSeconds", "failureThreshold", "initialDelaySeconds"), seconds)
    )
    vf_pool = {
        "resourceName": {"type": "string", "minLength": 1},
        "resourcePrefix": text,
        "selectors": {"type": ["object", "array", "null"]},
        "vhostMode": {"enum": [*VhostMode, None]},
        "simulated": number,
    }
    pod = {
        "image": _object(
            {
                "repository": {"type": "string", "minLength": 1},
                "tag": text,
                "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
                "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
            }
        ),
        "imagePullSecrets": _list(_object({"name": text})),
        "securityMode": {"enum": ["default", "privileged"]},
        "runAsUser": number,
        "runAsGroup": number,
        "supplementalGroups": _list(number),
        "extraCapabilities": _list({"type": "string", "pattern": "^[A-Z_]+$"}),
        "hostDevices": _list({"type": "string", "pattern": "^/dev/"}),
        "seLinuxOptions": _object(dict.fromkeys(("level", "role", "type", "user"), text)),
        "runDirectory": {"type": "string", "pattern": "^/.*[^/]$"},
        "deviceList": _list(
            {"type": "string", "pattern": r"^([0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]$"}
        ),
        # What may stand in a pool the agent knows, and refuses by name.
        "resourceConfig": {
            **_object({"resourceList": _list({"type": "object", "required": ["resourceName"], "properties": vf_pool})}),
            "type": ["object", "null"],
        },
        "resourceConfigMap": text,
        "devicePlugin": _object({"enabled": flag}),
        "hugepages": _object(
            {
                "size": {"enum": ["none", "2Mi", "1Gi"]},
                "amount": {"type": "string", "pattern": "^[1-9][0-9]*(Mi|Gi)$"},
            }
        ),
        "config": _object({key(action): option_schema(action) for action in run_options()}),
        "extraArgs": _list(text),
        "extraEnv": _list(_object({"name": text, "value": text, "valueFrom": free})),
        "extraVolumes": _list(free),
        "extraVolumeMounts": _list(free),
        "resources": _object({"requests": quantities, "limits": quantities, "claims": _list(free)}),
        "nodeSelector": texts,
        "tolerations": _list(
            _object(
                {
                    "key": text,
                    "operator": {"enum": ["Exists", "Equal"]},
                    "value": text,
                    "effect": {"enum": ["", "NoSchedule", "PreferNoSchedule", "NoExecute"]},
                    "tolerationSeconds": {"type": "integer"},
                }
            )
        ),
        "affinity": _object({"nodeAffinity": free, "podAffinity": free, "podAntiAffinity": free}),
        "priorityClassName": text,
        "runtimeClassName": text,
        "updateStrategy": _object({"type": {"enum": ["RollingUpdate", "OnDelete"]}, "rollingUpdate": free}),
        "terminationGracePeriodSeconds": {"type": ["integer", "null"], "minimum": 1},
        "podLabels": texts,
        "podAnnotations": texts,
        "probes": _object({"startup": probe, "liveness": probe, "readiness": probe}),
    }
    monitor = {"enabled": flag, "labels": texts}
    whole = {
        "nameOverride": text,
        "fullnameOverride": {"type": "string", "maxLength": 50},
        "commonLabels": texts,
        **{name: {"$ref": f"#/definitions/{name}"} for name in pod},
        "pools": {
            "type": "object",
            "propertyNames": {"pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 20},
            "additionalProperties": _object({name: {"$ref": f"#/definitions/{name}"} for name in pod}),
        },
        "serviceAccount": _object({"create": flag, "name": text, "annotations": texts}),
        "podMonitor": _object(
            {
                **monitor,
                "interval": text,
                "scrapeTimeout": text,
                "relabelings": _list(free),
                "metricRelabelings": _list(free),
            }
        ),
        "prometheusRule": _object(
            {**monitor, "runbookBaseUrl": {"type": "string", "pattern": r"^(https?://[^\s#?]+/)?$"}}
        ),
        "grafanaDashboard": _object({**monitor, "annotations": texts}),
        "networkPolicy": _object({"enabled": flag, "ingressFrom": _list(free), "egress": _list(free)}),
        "openshift": _object({"securityContextConstraints": flag}),
        "test": _object({"device": text}),
        "global": free,  # Helm adds it where the chart is part of another
    }
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", **_object(whole), "definitions": pod}
    return json.dumps(schema, indent=2) + "\n"


def tool(name: str) -> str:
    """The path of a tool that tests/chart/build made."""
    path = TOOLS / name
    if not path.exists():
        sys.exit(f"{path} is missing: run make chart-tools")
    return str(path)


def helm_template(case: Path, kube_version: str, *arguments: str) -> str:
    """The chart rendered with the values of a case, by helm."""
    command = [tool("helm"), "template", "vdpa-agent", str(CHART), "--namespace", "kube-system"]
    command += ["--kube-version", kube_version, "--values", str(case), *arguments]
    return _output(command)


def _output(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def plain(rendered: str) -> str:
    """Takes away what is only true of a release of Helm's."""
    owned = ("helm.sh/chart:", "app.kubernetes.io/managed-by:", "# Source:")
    return "".join(line for line in rendered.splitlines(keepends=True) if not line.strip().startswith(owned))


def rendered_files() -> Iterator[tuple[Path, str]]:
    """All files that are rendered from the chart, with what they must contain."""
    for case in sorted(CASES.glob("*.yaml")):
        yield GOLDEN / case.name, helm_template(case, CURRENT)
    for name, (values, kube_version) in PLAIN.items():
        first, last = (version.removesuffix(".0") for version in ACCEPTED_BY[kube_version])
        head = f"# Rendered from charts/vdpa-agent by make deploy, for Kubernetes {first} to {last}\n"
        yield DEPLOY / name, head + plain(helm_template(CASES / values, kube_version, "--skip-tests"))
    docs = ["helm-docs", "--chart-search-root", str(CHART), "--dry-run", "--sort-values-order", "file"]
    yield CHART / "README.md", _output([tool(docs[0]), *docs[1:], "--log-level", "error"]).strip() + "\n"


def main() -> None:
    """Writes all of it."""
    (CHART / "values.yaml").write_text(values_text())
    (CHART / "values.schema.json").write_text(schema_text())
    for rendered, content in rendered_files():
        rendered.parent.mkdir(exist_ok=True)
        rendered.write_text(content)


if __name__ == "__main__":
    main()
