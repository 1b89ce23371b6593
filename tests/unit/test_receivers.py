"""Which receiver a URL belongs to, and which part of it may be displayed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.uris import receiver_of, scheme_of, without_secrets


@pytest.mark.parametrize(
    ("url", "receiver"),
    [
        ("http://host/path?query", "http://host"),
        ("HTTP://Host:80/", "http://host"),
        ("https://host:443", "https://host"),
        ("https://host.:8443/", "https://host:8443"),
        ("http://host:443/", "http://host:443"),
        ("http://user:password@host/", "http://host"),
        ("http://[2001:DB8::1]:8080/", "http://[2001:db8::1]:8080"),
        ("call:billing", "call:billing"),
        ("CALL:billing?token=1", "call:billing"),
        ("log:audit", "log:audit"),
        ("queue:///jobs", "queue:/jobs"),
        ("mail:secret@host", "mail:***@host"),
        ("call:" + 300 * "x", "call:" + 250 * "x"),
        ("http://host:port/", "http"),
        ("no url", ""),
    ],
)
def test_a_receiver_is_scheme_host_and_port_or_scheme_and_path(url: str, receiver: str) -> None:
    assert receiver_of(url) == receiver


@pytest.mark.parametrize(
    ("url", "scheme"),
    [("HTTPS://x", "https"), ("a+b-c.d:x", "a+b-c.d"), ("1http://x", ""), ("//x", ""), ("", "")],
)
def test_a_scheme_follows_the_standard(url: str, scheme: str) -> None:
    assert scheme_of(url) == scheme


@given(st.text())
def test_a_receiver_gets_any_string_unchanged(url: str) -> None:
    assert isinstance(receiver_of(url), str)


def test_secrets_of_a_url_are_removed_from_a_string() -> None:
    url = "https://user:pass%20word@host/path?token=abc"
    text = f"cannot reach {url}: pass%20word and token=abc were refused"
    assert without_secrets(text, url) == "cannot reach https://***@host/path?…: *** and *** were refused"
