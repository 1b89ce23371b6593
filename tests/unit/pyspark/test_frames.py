from __future__ import annotations

import socket
import struct
import threading

import pytest

from jobserver_pyspark.protocol.frames import Channel, ChannelClosed, FrameError


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    channels = Channel(left, max_payload=1024), Channel(right, max_payload=1024)
    yield channels
    for channel in channels:
        channel.close()


def test_a_frame_arrives_as_it_was_sent(pair) -> None:
    left, right = pair
    left.send("kind", b"\x00raw\xff", text="é", number=1, nested={"a": [None]})
    header, payload = right.receive()
    assert header == {"kind": "kind", "text": "é", "number": 1, "nested": {"a": [None]}}
    assert payload == b"\x00raw\xff"


def test_frames_of_many_threads_do_not_mix(pair) -> None:
    left, right = pair
    threads = [
        threading.Thread(target=lambda n=n: [left.send("n", bytes([n]) * 1000, n=n) for _ in range(20)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for _ in range(160):
        header, payload = right.receive()
        assert payload == bytes([header["n"]]) * 1000
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack(">II", 1 << 30, 0),
        struct.pack(">II", 2, 1 << 30) + b"{}",
        struct.pack(">II", 4, 0) + b"nope",
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 2, 0) + b"{}",
        struct.pack(">II", 10, 0) + b'{"kind":1}',
    ],
)
def test_what_is_no_frame_is_refused(raw: bytes) -> None:
    left, right = socket.socketpair()
    channel = Channel(right, max_payload=1024)
    left.sendall(raw)
    with pytest.raises(FrameError):
        channel.receive()
    left.close()
    channel.close()


def test_a_payload_over_the_limit_is_refused_before_it_is_read(pair) -> None:
    left, right = pair
    left.send("kind", b"x" * 1025)
    with pytest.raises(FrameError, match="over the limits"):
        right.receive()


def test_a_closed_connection_is_told_on_both_sides(pair) -> None:
    left, right = pair
    left.close()
    with pytest.raises(ChannelClosed):
        right.receive()
    with pytest.raises(ChannelClosed):
        _send_for_ever(right)


def _send_for_ever(channel: Channel) -> None:
    while True:
        channel.send("kind", b"x" * 1024)


def test_half_a_frame_is_a_closed_connection() -> None:
    left, right = socket.socketpair()
    channel = Channel(right)
    left.sendall(struct.pack(">II", 10, 0) + b'{"ki')
    left.close()
    with pytest.raises(ChannelClosed):
        channel.receive()
    channel.close()


def test_frames_over_tcp_are_sent_without_waiting_for_acknowledgements() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    channels = [Channel(connection) for connection in (client, server)]
    for connection in (client, server):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for channel in channels:
        channel.close()


def test_a_payload_larger_than_the_sockets_buffer_arrives_whole() -> None:
    left, right = socket.socketpair()
    sender, receiver = Channel(left), Channel(right)
    payload = bytes(range(256)) * 20_000
    sending = threading.Thread(target=sender.send, args=("kind", memoryview(payload)))
    sending.start()
    header, received = receiver.receive()
    sending.join()
    assert (header, received == payload) == ({"kind": "kind"}, True)
    for channel in (sender, receiver):
        channel.close()
