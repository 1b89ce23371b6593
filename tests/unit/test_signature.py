"""Signatures in the form of the Standard Webhooks specification."""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobserver_core.errors import InvalidSetting
from jobserver_httpx import Signer


def test_signatures_match_the_reference_libraries() -> None:
    signer = Signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signer.headers(
        delivery_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=b'{"test": 2432232314}'
    )
    assert headers == {"webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}


def test_the_prefix_is_optional() -> None:
    with_prefix, without = (
        Signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        Signer("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    )
    sent: dict[str, Any] = {"delivery_id": "a", "timestamp": 1, "body": b"{}"}
    assert with_prefix.headers(**sent) == without.headers(**sent)


def test_several_secrets_give_a_signature_each() -> None:
    old, new = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
    value = Signer(f"whsec_{new} whsec_{old}").headers(delivery_id="a", timestamp=1, body=b"{}")
    signatures = value["webhook-signature"].split(" ")
    each = [
        Signer(one).headers(delivery_id="a", timestamp=1, body=b"{}")["webhook-signature"]
        for one in (new, old)
    ]
    assert signatures == each


@pytest.mark.parametrize(
    "secret", ["", "  ", "whsec_", "whsec_???", "hunter2", base64.b64encode(bytes(8)).decode()]
)
def test_an_invalid_secret_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(InvalidSetting, match="signing-secret") as refused:
        Signer(secret)
    assert secret.strip() in ("", "whsec_") or secret not in str(refused.value)


@given(
    key=st.binary(min_size=24, max_size=64),
    delivery_id=st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."), min_size=1
    ),
    timestamp=st.integers(min_value=0, max_value=2**40),
    body=st.binary(),
)
def test_a_receiver_that_follows_the_specification_agrees(
    key: bytes, delivery_id: str, timestamp: int, body: bytes
) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    headers = Signer(secret).headers(delivery_id=delivery_id, timestamp=timestamp, body=body)
    signed = b".".join([delivery_id.encode(), str(timestamp).encode(), body])
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
