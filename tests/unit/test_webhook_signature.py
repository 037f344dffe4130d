"""Signatures: as the specification's own example has them, and as its library checks them."""

import base64
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from gridscore.errors import UsageError
from gridscore.sinks.webhook.signature import decode_secret, sign

# The example of the reference implementations of Standard Webhooks.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 -- published
IDENTITY, TIMESTAMP, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_example_of_the_specification():
    assert sign([decode_secret(SECRET)], IDENTITY, TIMESTAMP, BODY) == SIGNATURE


def test_a_receiver_believes_one_of_several_signatures():
    now = int(time.time())
    other = "whsec_" + base64.b64encode(b"o" * 32).decode()
    both = sign([decode_secret(other), decode_secret(SECRET)], IDENTITY, now, BODY)
    headers = {"Webhook-Id": IDENTITY, "Webhook-Timestamp": str(now), "Webhook-Signature": both}
    for secret in (SECRET, other):
        Webhook(secret).verify(BODY, headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(BODY + b" ", headers)


@pytest.mark.parametrize("secret", ["", "secret", "whsec_", "whsec_c2hvcnQ=", "whsec_?" * 12, SECRET[6:]])
def test_a_secret_that_is_none_is_refused_and_not_shown(secret):
    with pytest.raises(UsageError) as failure:
        decode_secret(secret)
    assert "whsec_` and 24" in str(failure.value)
    assert not secret or secret in ("whsec_", "secret") or secret not in str(failure.value)
