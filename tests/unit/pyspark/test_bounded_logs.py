from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from jobserver_pyspark.host.logs import BoundedLog, OutputPump


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "job.log"


def test_a_short_log_is_kept_unchanged(path: Path) -> None:
    log = BoundedLog(path, 4096)
    log.write(b"one\n")
    log.write(b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    log.close()


def test_a_log_is_appended_to(path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = BoundedLog(path, 4096)
        log.write(text)
        log.close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_log_that_cannot_be_created_drops_what_is_written(path: Path) -> None:
    path.parent.write_text("in the way")
    log = BoundedLog(path, 4096)
    log.write(b"one\n")
    assert log.tail() == ""
    log.close()
    assert path.parent.read_text() == "in the way"


def test_a_full_log_keeps_its_end_and_says_how_much_it_dropped(path: Path) -> None:
    log = BoundedLog(path, 4096)
    written = 0
    for number in range(1000):
        written += len(line := f"line {number}\n".encode())
        log.write(line)
        assert path.stat().st_size <= 4096
    note, *lines = path.read_text().splitlines()
    dropped = int(note[1:].split()[0])
    assert lines[-1] == "line 999"
    assert lines == [f"line {n}" for n in range(1000 - len(lines), 1000)]
    kept = sum(len(line) + 1 for line in lines)
    assert written <= dropped + kept
    log.close()


def test_a_chunk_larger_than_the_limit_keeps_its_tail(path: Path) -> None:
    log = BoundedLog(path, 4096)
    log.write(b"x" * 100_000 + b"\nthe end\n")
    assert path.stat().st_size <= 4096
    assert path.read_bytes().endswith(b"the end\n")
    log.close()


def test_a_reader_that_holds_the_file_open_sees_the_same_file(path: Path) -> None:
    log = BoundedLog(path, 2048)
    log.write(b"first\n")
    with path.open("rb") as reader:
        for _ in range(500):
            log.write(b"0123456789\n")
        assert os.fstat(reader.fileno()).st_ino == path.stat().st_ino
    log.close()


def test_the_tail_begins_with_a_whole_line(path: Path) -> None:
    log = BoundedLog(path, 4096)
    log.write(b"a long first line\nsecond\nthird\n")
    assert log.tail(10) == "third"
    assert log.tail(4096) == "a long first line\nsecond\nthird"
    log.close()


def test_writing_to_a_closed_log_is_not_an_error(path: Path) -> None:
    log = BoundedLog(path, 4096)
    log.write(b"in time\n")
    log.close()
    log.write(b"late\n")
    log.close()
    assert (path.read_bytes(), log.tail()) == (b"in time\n", "")


def test_a_log_to_which_nothing_was_written_has_no_file(path: Path) -> None:
    log = BoundedLog(path, 4096)
    assert log.tail() == ""
    log.close()
    log.write(b"late\n")
    assert not path.exists()


def test_a_pump_carries_everything_that_processes_print() -> None:
    pump = OutputPump()
    collected: list[list[bytes]] = [[], []]
    outputs = []
    for number, target in enumerate(collected):
        reader, writer = os.pipe()
        outputs.append(pump.add(reader, target.append))
        command = f"for i in $(seq 2000); do echo {number} $i; done"
        subprocess.run(["sh", "-c", command], stdout=writer, check=True)
        os.close(writer)
    for number, (output, target) in enumerate(zip(outputs, collected, strict=True)):
        pump.finish(output)
        assert b"".join(target) == b"".join(b"%d %d\n" % (number, i) for i in range(1, 2001))


def test_a_pump_releases_a_pipe_that_another_process_holds() -> None:
    pump = OutputPump()
    reader, writer = os.pipe()
    collected: list[bytes] = []
    output = pump.add(reader, collected.append)
    os.write(writer, b"last words\n")
    pump.finish(output, timeout=5.0)
    assert output.done.is_set()
    assert b"".join(collected) == b"last words\n"
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"too late\n")
    os.close(writer)


def test_a_pump_ends_by_itself_with_its_pipes() -> None:
    before = threading.active_count()
    pump = OutputPump()
    reader, writer = os.pipe()
    output = pump.add(reader, lambda _data: None)
    os.close(writer)
    assert output.done.wait(5.0)
    pump.close()
    assert threading.active_count() == before


def test_nothing_is_read_from_a_file_that_got_the_number_of_a_closed_pipe() -> None:
    pump = OutputPump()
    reader, writer = os.pipe()
    collected: list[bytes] = []
    output = pump.add(reader, collected.append)
    os.close(writer)
    assert output.done.wait(5.0)
    other, its_writer = os.pipe()
    if other != output.fd:
        os.dup2(other, output.fd)
    os.write(its_writer, b"of another process")
    pump.drain(output)
    assert collected == []
    assert os.read(output.fd, 100) == b"of another process"
    for fd in {other, its_writer, output.fd}:
        os.close(fd)
    pump.close()
