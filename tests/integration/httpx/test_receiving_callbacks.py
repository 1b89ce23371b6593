"""The page on receiving callbacks is correct: its receiver accepts the callbacks of this server."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conditions import wait_until
from jobserver_core import BinaryType, JobRequest, parse_class_path
from jobserver_core.models.callbacks import Answer
from jobserver_core.ports import Message
from jobserver_httpx import HttpxTransport, Signer
from serving import archive

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "receive-callbacks.md"


@pytest.fixture
def page() -> Iterator[dict[str, Any]]:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    names["Receiver"].log_message = lambda *_: None
    thread = threading.Thread(target=names["receiver"].serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield names
    names["receiver"].shutdown()
    names["receiver"].server_close()
    thread.join(5)


def send(page: dict[str, Any], *, secret: str | None = None, age: int = 0, result: int = 42) -> Answer:
    transport = HttpxTransport(signer=Signer(secret or page["secret"]))
    message = Message(
        delivery_id="delivery-1",
        job_id="job-1",
        url=f"http://127.0.0.1:{page['receiver'].server_port}/",
        attempt=1,
        timestamp=int(time.time()) - age,
        body=b'{"jobId": "job-1", "result": %d}' % result,
    )
    return transport.send(message, timeout=5)


def test_a_signed_callback_is_accepted(page: dict[str, Any]) -> None:
    assert send(page).accepted
    assert page["outcomes"] == {"job-1": 42}


def test_a_duplicate_is_accepted_and_ignored(page: dict[str, Any]) -> None:
    assert send(page, result=1).accepted
    assert send(page, result=2).accepted
    assert page["outcomes"] == {"job-1": 1}


def test_another_secret_is_refused_and_one_of_several_is_enough(page: dict[str, Any]) -> None:
    other = "whsec_" + "A" * 32
    assert send(page, secret=other).status == 401
    assert send(page, secret=f"{other} {page['secret']}").accepted


def test_an_old_callback_played_again_is_refused(page: dict[str, Any]) -> None:
    assert send(page, age=3600).status == 401


def test_a_function_is_called_in_the_server_process(page: dict[str, Any]) -> None:
    with page["server_with"](lambda job: 43) as server:
        server.upload("answers", BinaryType.WHEEL, archive())
        server.create_context("c").result(10)
        request = JobRequest(
            class_name="jobs.Answer",
            class_path=parse_class_path("answers"),
            context="c",
            callback_url="call:billing",
        )
        handle = server.submit(request)
        assert handle.result(10) == 43
        wait_until(lambda: handle.id in page["outcomes"])
    assert page["outcomes"][handle.id] == 43
