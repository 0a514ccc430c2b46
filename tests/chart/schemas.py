"""The schemas of versions of Kubernetes: unpacked from kubernetes-validate, and asked about an object."""

import functools
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS: Final = Path(__file__).resolve().parents[2] / "build" / "chart" / "schemas"


def problems(kube_version: str, thing: dict[str, Any]) -> list[str]:
    """What that version of Kubernetes would refuse of an object, unknown fields included."""
    directory = SCHEMAS / kube_version
    group, _, version = thing["apiVersion"].rpartition("/")
    name = "-".join(part for part in (thing["kind"].lower(), group.partition(".")[0], version) if part)
    path = directory / f"{name}.json"
    if not path.exists():
        return [f"Kubernetes {kube_version} has no {thing['kind']} of {thing['apiVersion']}"]
    schema = json.loads(path.read_text())
    schema.pop("$id", None)
    validator = Draft202012Validator(schema, registry=_registry(directory))
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(thing)]


@functools.cache
def _registry(directory: Path) -> Registry[Any]:
    definitions = json.loads((directory / "_definitions.json").read_text())
    definitions.pop("$id", None)
    resource: Resource[Any] = Resource.opaque(definitions)

    def retrieve(uri: str) -> Resource[Any]:
        assert uri.endswith("_definitions.json"), uri
        return resource

    return Registry(retrieve=retrieve)  # type: ignore[call-arg]


def _files(package: Path) -> Iterator[tuple[str, bytes]]:
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            for name in archive.namelist():
                yield name, archive.read(name)
        return
    with tarfile.open(package) as packed:
        for member in packed:
            content = packed.extractfile(member)
            if content is not None:
                yield member.name, content.read()


def _unpack(packages: Path, destination: Path, versions: list[str]) -> None:
    for package in packages.iterdir():
        for name, content in _files(package):
            found = re.search(r"/v([0-9.]+)-local-strict/([^/]+\.json)$", name)
            if found and found[1] in versions:
                target = destination / found[1] / found[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)


if __name__ == "__main__":
    _unpack(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
