"""Certificates that the tests make themselves."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Authority:
    """A CA of the test's own, with what it has signed: PEM files."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    locked_key: Path
    other_ca: Path


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    directory = tmp_path_factory.mktemp("authority")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=directory, check=True, capture_output=True)

    def key_and(name: str, *args: str) -> None:
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key")
        openssl("req", "-x509", *new_key, "-out", f"{name}.pem", "-days", "2", *args)

    for name in ("ca", "other"):
        key_and(name, "-subj", f"/CN=test {name}", "-addext", "keyUsage=critical,keyCertSign")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE")
    key_and("server", "-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1", *signed)
    key_and("client", "-subj", "/CN=node-1", *signed)
    openssl("ec", "-in", "client.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key")
    files = ("ca.pem", "server.pem", "server.key", "client.pem", "client.key", "locked.key", "other.pem")
    return Authority(*(directory / name for name in files))
