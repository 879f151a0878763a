"""A real single-member etcd, as the oracle of the differential test."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import grpc

from kvstore.pb import rpc_pb2

if TYPE_CHECKING:
    from pathlib import Path

EXECUTABLE = shutil.which("etcd")

_METHODS = {
    "Range": (rpc_pb2.RangeRequest, rpc_pb2.RangeResponse, "KV"),
    "Put": (rpc_pb2.PutRequest, rpc_pb2.PutResponse, "KV"),
    "DeleteRange": (rpc_pb2.DeleteRangeRequest, rpc_pb2.DeleteRangeResponse, "KV"),
    "Txn": (rpc_pb2.TxnRequest, rpc_pb2.TxnResponse, "KV"),
    "Compact": (rpc_pb2.CompactionRequest, rpc_pb2.CompactionResponse, "KV"),
    "HashKV": (rpc_pb2.HashKVRequest, rpc_pb2.HashKVResponse, "Maintenance"),
    "LeaseGrant": (rpc_pb2.LeaseGrantRequest, rpc_pb2.LeaseGrantResponse, "Lease"),
    "Status": (rpc_pb2.StatusRequest, rpc_pb2.StatusResponse, "Maintenance"),
}


class Etcd:
    """One etcd process and calls to it by message type."""

    def __init__(self, folder: Path) -> None:
        assert EXECUTABLE is not None
        client, peer = _free_port(), _free_port()
        self._log = (folder / "etcd.log").open("wb")
        self._process = subprocess.Popen(
            [
                EXECUTABLE,
                "--name=e1",
                f"--data-dir={folder / 'data'}",
                f"--listen-client-urls=http://127.0.0.1:{client}",
                f"--advertise-client-urls=http://127.0.0.1:{client}",
                f"--listen-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
                f"--initial-cluster=e1=http://127.0.0.1:{peer}",
                "--log-level=error",
                "--logger=zap",
            ],
            stdout=self._log,
            stderr=self._log,
        )
        self._channel = grpc.insecure_channel(f"127.0.0.1:{client}")
        self._calls: dict[type, Any] = {}
        for name, (request, response, service) in _METHODS.items():
            self._calls[request] = self._channel.unary_unary(
                f"/etcdserverpb.{service}/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
        self._wait()

    def _wait(self) -> None:
        # wait_for_ready retries the connection; the answer needs an elected leader.
        deadline = time.monotonic() + 30
        while True:
            assert self._process.poll() is None, "etcd ended at once, see etcd.log"
            status = self._calls[rpc_pb2.StatusRequest](
                rpc_pb2.StatusRequest(), wait_for_ready=True, timeout=30
            )
            if status.leader or time.monotonic() > deadline:
                self.version: str = status.version
                return

    def call(self, request: Any) -> Any:
        """Return the response, or (code name, text) of the error."""
        try:
            return self._calls[type(request)](request, timeout=10)
        except grpc.RpcError as error:
            text = re.sub(r"^etcdserver: ", "", error.details() or "")
            return error.code().name, text  # type: ignore[attr-defined]

    def close(self) -> None:
        self._channel.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=10)
        self._log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
