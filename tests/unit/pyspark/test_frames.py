"""Frames: messages over a real socket."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from jobserver_pyspark.protocol.converter import ProtocolError
from jobserver_pyspark.protocol.frames import Channel, ChannelClosed
from jobserver_pyspark.protocol.messages import JobEnded, RunnerResultChunk, RunnerToHost, WarmedUp

RunnerChannel = Channel[RunnerToHost, RunnerToHost]


def channel(connection: socket.socket) -> RunnerChannel:
    return RunnerChannel(connection, RunnerToHost, max_payload=1024)


@pytest.fixture
def pair() -> Iterator[tuple[RunnerChannel, RunnerChannel]]:
    left, right = socket.socketpair()
    channels = channel(left), channel(right)
    yield channels
    for one in channels:
        one.close()


def test_a_message_arrives_as_it_was_sent(pair: tuple[RunnerChannel, RunnerChannel]) -> None:
    left, right = pair
    message = RunnerResultChunk(stream=True, data=b"\x00raw\xff")
    left.send(message)
    assert right.receive() == message


def test_messages_that_are_sent_together_arrive_one_by_one(pair: tuple[RunnerChannel, RunnerChannel]) -> None:
    left, right = pair
    messages = [RunnerResultChunk(stream=False, data=data) for data in (b"a", b"", b"c" * 1000)]
    left.send(*messages)
    assert not right.more
    assert right.receive() == messages[0]
    assert right.more
    assert [right.receive() for _ in messages[1:]] == messages[1:]
    assert not right.more


def test_any_number_of_messages_can_be_sent_together() -> None:
    left, right = socket.socketpair()
    sender, receiver = (RunnerChannel(end, RunnerToHost) for end in (left, right))
    receiver.settimeout(10)
    messages = [RunnerResultChunk(stream=False, data=b"%d" % number) for number in range(2000)]
    sending = threading.Thread(target=sender.send, args=messages)
    sending.start()
    assert [receiver.receive() for _ in messages] == messages
    sending.join()
    for one in (sender, receiver):
        one.close()


def test_a_part_of_a_frame_is_not_a_message_that_has_arrived() -> None:
    left, right = socket.socketpair()
    receiver = channel(right)
    header = b'{"kind":"WarmedUp"}'
    frame = struct.pack(">II", len(header), 0) + header
    left.sendall(frame + frame[:12])
    assert receiver.receive() == WarmedUp()
    assert not receiver.more
    left.sendall(frame[12:])
    assert receiver.receive() == WarmedUp()
    left.close()
    receiver.close()


def test_a_large_message_among_short_ones_arrives_complete() -> None:
    left, right = socket.socketpair()
    sender, receiver = (RunnerChannel(end, RunnerToHost) for end in (left, right))
    messages = [RunnerResultChunk(stream=False, data=data) for data in (b"1", b"2" * 3_000_000, b"3")]
    sending = threading.Thread(target=sender.send, args=messages)
    sending.start()
    assert [receiver.receive() for _ in messages] == messages
    sending.join()
    for one in (sender, receiver):
        one.close()


def test_frames_of_many_threads_do_not_mix(pair: tuple[RunnerChannel, RunnerChannel]) -> None:
    left, right = pair

    def send(number: int) -> None:
        for _ in range(20):
            left.send(RunnerResultChunk(stream=number % 2 == 0, data=bytes([number]) * 1000))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(160):
        message = right.receive()
        assert isinstance(message, RunnerResultChunk)
        data = bytes(message.data)
        assert data == data[:1] * 1000
        assert message.stream is (data[0] % 2 == 0)
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
def test_an_invalid_frame_is_refused(raw: bytes) -> None:
    left, right = socket.socketpair()
    receiver = channel(right)
    left.sendall(raw)
    with pytest.raises(ProtocolError, match=r"^the job's process sent "):
        receiver.receive()
    left.close()
    receiver.close()


def test_a_payload_over_the_limit_is_refused_before_it_is_read(
    pair: tuple[RunnerChannel, RunnerChannel],
) -> None:
    left, right = pair
    left.send(RunnerResultChunk(stream=False, data=b"x" * 1025))
    with pytest.raises(ProtocolError, match=r"1025 bytes; at most \d+ \+ 1024 are allowed"):
        right.receive()


def test_a_closed_connection_is_noticed_on_both_sides(pair: tuple[RunnerChannel, RunnerChannel]) -> None:
    left, right = pair
    left.close()
    with pytest.raises(ChannelClosed):
        right.receive()
    with pytest.raises(ChannelClosed):
        _send_forever(right)


def _send_forever(sender: RunnerChannel) -> None:
    while True:
        sender.send(RunnerResultChunk(stream=False, data=b"x" * 1024))


def test_half_a_frame_is_a_closed_connection() -> None:
    left, right = socket.socketpair()
    receiver = channel(right)
    left.sendall(struct.pack(">II", 10, 0) + b'{"ki')
    left.close()
    with pytest.raises(ChannelClosed):
        receiver.receive()
    receiver.close()


def test_frames_over_tcp_are_sent_without_waiting_for_acknowledgements() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    channels = [channel(connection) for connection in (client, server)]
    for connection in (client, server):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for one in channels:
        one.close()


def test_a_payload_larger_than_the_sockets_buffer_arrives_complete() -> None:
    left, right = socket.socketpair()
    sender, receiver = (RunnerChannel(end, RunnerToHost) for end in (left, right))
    payload = bytes(range(256)) * 20_000
    message = RunnerResultChunk(stream=False, data=memoryview(payload))
    sending = threading.Thread(target=sender.send, args=(message,))
    sending.start()
    received = receiver.receive()
    sending.join()
    assert received == RunnerResultChunk(stream=False, data=payload)
    for one in (sender, receiver):
        one.close()


def test_a_message_of_another_direction_is_refused(pair: tuple[RunnerChannel, RunnerChannel]) -> None:
    left, right = pair
    left.send(JobEnded(job_id="1"))  # type: ignore[arg-type] # of HostToServer
    with pytest.raises(ProtocolError, match="unknown kind 'JobEnded'"):
        right.receive()
