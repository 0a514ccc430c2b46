"""The authority, the certificates and the tokens of one cluster, made by openssl and kept on the node's disk."""

import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

USERS: Final = {
    "admin": ("admin", "system:masters"),
    "kubelet": ("system:node:node1", "system:nodes"),
    "controllers": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}
"""Who has a token: the user's name, and its group."""

_NEW_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30")
_NAMES: Final = "subjectAltName=IP:10.44.0.1,IP:10.46.0.1,IP:127.0.0.1,DNS:kubernetes.default.svc"


@dataclass(frozen=True)
class Credentials:
    """Files below one directory, readable by root alone."""

    directory: Path
    tokens: dict[str, str]

    @classmethod
    def below(cls, directory: Path) -> "Credentials":
        """Those of a directory, made where they are not there yet."""
        listed = directory / "tokens.csv"
        if not listed.exists():
            directory.mkdir(parents=True, mode=0o700, exist_ok=True)
            _make(directory)
            lines = [f'{secrets.token_hex(16)},{user},{user},"{group}"\n' for user, group in USERS.values()]
            listed.write_text("".join(lines))
        tokens = [line.split(",")[0] for line in listed.read_text().splitlines()]
        return cls(directory, dict(zip(USERS, tokens, strict=True)))

    def kubeconfig(self, user: str, server: str) -> str:
        """What a client of the API server reads: where it is, what it is trusted by, and a token."""
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {
                        "name": "cluster",
                        "cluster": {"server": server, "certificate-authority": str(self.directory / "ca.crt")},
                    }
                ],
                "users": [{"name": user, "user": {"token": self.tokens[user]}}],
                "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": user}}],
                "current-context": "cluster",
            }
        )


def _make(directory: Path) -> None:
    def openssl(*arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], check=False, capture_output=True, text=True, cwd=directory)
        assert done.returncode == 0, f"openssl {' '.join(arguments)}: {done.stderr}"

    def signed(name: str, subject: str, usage: str, *extensions: str) -> None:
        added = [f"-addext={extension}" for extension in (f"extendedKeyUsage={usage}", *extensions)]
        files = ("-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", f"{name}.key", "-out", f"{name}.crt")
        openssl(
            "req", "-x509", *_NEW_KEY, *files, "-subj", subject, *[part for one in added for part in one.split("=", 1)]
        )

    openssl("req", "-x509", *_NEW_KEY, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=cluster")
    signed("api", "/CN=kube-apiserver", "serverAuth", _NAMES)
    signed("api-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", "clientAuth")
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "accounts.key")
