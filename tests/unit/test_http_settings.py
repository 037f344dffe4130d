import pytest
from pydantic import ValidationError

from gridscore.sources.http.settings import HttpSourceSettings


def test_a_map_is_enough():
    settings = HttpSourceSettings(to="events.clicks")
    assert (settings.host, settings.port, settings.patience) == ("127.0.0.1", 8080, "10s")


@pytest.mark.parametrize("origin", ["https://shop.example.com", "http://localhost:3000", "*"])
def test_origins_are_as_browsers_write_them(origin):
    assert HttpSourceSettings(to="events.x", allow_origin=(origin,)).allow_origin == (origin,)


@pytest.mark.parametrize(
    "origin", ["shop.example.com", "https://shop.example.com/", "https://*.example.com", "", "null"]
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(ValidationError, match="is not an origin"):
        HttpSourceSettings(to="events.x", allow_origin=(origin,))


@pytest.mark.parametrize("name", ["certificate", "private_key"])
def test_a_certificate_needs_its_key(name):
    with pytest.raises(ValidationError, match="belong together"):
        HttpSourceSettings(to="events.x", **{name: "a.pem"})
