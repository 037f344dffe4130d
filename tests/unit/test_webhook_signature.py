"""Signatures: what the specification's own example says, and what receivers must not believe."""

import base64
import time

import pytest

from gridscore import GridscoreError
from gridscore.errors import UsageError
from gridscore.sinks.webhook.signature import SignatureError, decode_secret, sign, verify_webhook

# The example of the reference implementations of Standard Webhooks.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 -- published
IDENTITY, TIMESTAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def headers(**other):
    return {"Webhook-Id": IDENTITY, "Webhook-Timestamp": str(TIMESTAMP), "Webhook-Signature": SIGNATURE} | other


def test_the_example_of_the_specification():
    assert sign([decode_secret(SECRET)], IDENTITY, TIMESTAMP, BODY) == SIGNATURE
    assert verify_webhook(SECRET, headers(), BODY, now=TIMESTAMP + 60) == IDENTITY


def test_one_of_several_signatures_is_enough():
    other = decode_secret("whsec_" + base64.b64encode(b"o" * 32).decode())
    both = sign([other, decode_secret(SECRET)], IDENTITY, TIMESTAMP, BODY)
    assert verify_webhook(SECRET, headers(**{"Webhook-Signature": both}), BODY, now=TIMESTAMP) == IDENTITY


@pytest.mark.parametrize(
    ("change", "body", "now"),
    [
        ({}, BODY + b" ", TIMESTAMP),
        ({}, BODY, TIMESTAMP + 301),
        ({}, BODY, TIMESTAMP - 301),
        ({}, BODY, None),
        ({"Webhook-Id": "msg_other"}, BODY, TIMESTAMP),
        ({"Webhook-Timestamp": str(TIMESTAMP + 1)}, BODY, TIMESTAMP),
        ({"Webhook-Timestamp": "now"}, BODY, TIMESTAMP),
        ({"Webhook-Timestamp": "9" * 400}, BODY, TIMESTAMP),
        ({"Webhook-Timestamp": f" {TIMESTAMP} "}, BODY, TIMESTAMP),
        ({"Webhook-Timestamp": f"{TIMESTAMP:_}"}, BODY, TIMESTAMP),
        ({"Webhook-Timestamp": str(TIMESTAMP).translate({49: "\u0661"})}, BODY, TIMESTAMP),
        ({"Webhook-Id": "\ud800"}, BODY, TIMESTAMP),
        ({"Webhook-Signature": "v1,\ud800"}, BODY, TIMESTAMP),
        ({"Webhook-Signature": SIGNATURE.replace("v1", "v2")}, BODY, TIMESTAMP),
        ({"Webhook-Signature": "v1,é"}, BODY, TIMESTAMP),
        ({"Webhook-Signature": ""}, BODY, TIMESTAMP),
    ],
)
def test_what_must_not_be_believed(change, body, now):
    with pytest.raises(SignatureError) as failure:
        verify_webhook(SECRET, headers(**change), body, now=now)
    assert isinstance(failure.value, GridscoreError)


def test_headers_that_are_missing_are_no_signature():
    with pytest.raises(SignatureError, match="webhook-id"):
        verify_webhook(SECRET, {}, BODY)


@pytest.mark.parametrize("secret", ["", "secret", "whsec_", "whsec_c2hvcnQ=", "whsec_?" * 12, SECRET[6:]])
def test_a_secret_that_is_none_is_refused_and_not_shown(secret):
    with pytest.raises(UsageError) as failure:
        decode_secret(secret)
    assert "whsec_` and 24" in str(failure.value)
    assert not secret or secret in ("whsec_", "secret") or secret not in str(failure.value)


def test_now_is_the_clocks():
    now = int(time.time())
    signature = sign([decode_secret(SECRET)], IDENTITY, now, BODY)
    given = headers(**{"Webhook-Timestamp": str(now), "Webhook-Signature": signature})
    assert verify_webhook(SECRET, given, BODY) == IDENTITY
