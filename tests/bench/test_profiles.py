"""Recorded header blocks: what is replayed is what the client sent, for two decoders alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hpack import Decoder as Oracle

from bench import profiles
from bench.capture import CaptureError, capture, check, record, without_content_length
from bench.messages import PUT, RANGE
from bench.profiles import CALLS, NAMES, PATHS, RECORDED, START_OVER, sequence
from kvstore.http2.hpack import Decoder

ROOT = Path(__file__).parents[2]
GRPCIO = [sys.executable, str(ROOT / "bench/recorders/grpcio_token.py")]
AGENTS = {
    "grpc-go-deadline": "grpc-go/",
    "grpc-java": "grpc-java-netty/",
    "grpc-js": "grpc-node-js/",
    "grpcio-token": "grpc-python/",
    "h2load": "h2load nghttp2/",
}

TWO_CONNECTIONS = """
import socket, sys
host, port = sys.argv[1].split(":")
for _ in range(2):
    socket.create_connection((host, int(port))).close()
"""


def test_every_client_is_recorded() -> None:
    assert set(NAMES) == set(AGENTS)


@pytest.mark.parametrize("profile", NAMES)
@pytest.mark.parametrize("put_share", [1.0, 0.0, 0.5])
def test_our_decoder_and_the_oracle_read_every_replayed_block_alike(
    profile: str, put_share: float
) -> None:
    # Three times round, so that the replay starts over, and evicts and inserts again.
    blocks = sequence(profile, put_share=put_share)
    while len(blocks.items) < 3 * CALLS:
        blocks.extend()
    recording = json.loads((RECORDED / f"{profile}.json").read_text())
    ours, oracle = Decoder(16_384), Oracle()
    kinds, timeouts, lists = [], set(), []

    for kind, start, block in blocks.items:
        fields = ours.decode(block)
        assert fields == [(bytes(name), bytes(text)) for name, text in oracle.decode(block, True)]
        headers = dict(fields)
        lists.append(fields)
        kinds.append(kind)
        timeouts.add(headers.get(b"grpc-timeout"))
        assert headers[b":path"] == PATHS[kind].encode()
        assert headers[b":method"] == b"POST"
        assert headers[b"content-type"] == b"application/grpc"
        assert headers[b"te"] == b"trailers"
        assert headers[b"user-agent"].decode() == recording["user agent"]
        assert b"content-length" not in headers
        assert int.from_bytes(start[:3], "big") == len(block)

    assert lists[CALLS : 2 * CALLS] == lists[2 * CALLS :] == lists[:CALLS]
    assert recording["user agent"].startswith(AGENTS[profile])
    assert kinds.count(0) == put_share * len(kinds)
    if profile in ("grpc-go-deadline", "grpc-java"):
        # More than the dynamic table holds beside the other headers: the recording evicts.
        assert len(timeouts) > 75
    if profile == "grpc-js":
        assert None not in timeouts
    if profile == "grpcio-token":
        assert headers[b"xtoken"]


def test_a_replay_is_the_recording_byte_for_byte() -> None:
    recording = json.loads((RECORDED / "grpc-java.json").read_text())
    recorded = [bytes.fromhex(recording["blocks"][number]) for number in recording["puts"]]
    blocks = sequence("grpc-java", put_share=1.0)
    blocks.extend()

    sent = [block for _, _, block in blocks.items]

    assert sent == [*recorded, START_OVER + recorded[0], *recorded[1:]]


@pytest.mark.parametrize(("profile", "put_share"), [("grpc-rust", 1.0), ("h2load", 0.3)])
def test_what_was_not_recorded_cannot_be_replayed(profile: str, put_share: float) -> None:
    with pytest.raises(ValueError, match=rf"{profile}.*{put_share}"):
        sequence(profile, put_share=put_share)


def test_a_recording_of_the_installed_grpcio_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = capture("mine", GRPCIO, tmp_path)
    monkeypatch.setattr(profiles, "RECORDED", tmp_path)
    monkeypatch.setattr(profiles, "NAMES", ("mine",))
    oracle = Oracle()

    blocks = sequence("mine", put_share=0.5)
    paths = [dict(oracle.decode(block))[":path"] for _, _, block in blocks.items]

    assert file == tmp_path / "mine.json"
    # This program calls one after the other.
    assert paths == [PUT, RANGE] * (CALLS // 2)


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("raise SystemExit('no such client')", "no such client"),
        ("pass", "0 connections"),
        (TWO_CONNECTIONS, "2 connections"),
    ],
)
def test_a_program_that_cannot_be_replayed_is_refused(program: str, text: str) -> None:
    with pytest.raises(CaptureError, match=text):
        record([sys.executable, "-c", program], [PUT])


def test_calls_that_are_not_those_asked_for_are_refused() -> None:
    blocks = [block for _, _, block in sequence("grpc-go-deadline", put_share=1.0).items]

    check(blocks, [PUT])
    for wrong, paths in ((blocks[:-1], [PUT]), (blocks, [RANGE]), (blocks, [PUT, RANGE])):
        with pytest.raises(CaptureError):
            check(wrong, paths)


def test_the_content_length_is_cut_out_and_nothing_else() -> None:
    block = b"\x83\x0f\x0d\x02" + b"17" + b"\x86"

    assert without_content_length(block) == b"\x83\x86"
    assert without_content_length(b"\x83\x86") == b"\x83\x86"
