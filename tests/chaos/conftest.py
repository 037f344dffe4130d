"""The seed of a run, and what keeps the long one out of the ordinary ones."""

import os

import pytest

# Read at once: the tests do not see the environment of whoever runs them.
_SEED = os.environ.get("GRIDSCORE_SEED")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: the soak of 500,000 events, ten minutes; runs with `-m full` only")


def pytest_collection_modifyitems(config, items):
    if "full" not in config.getoption("markexpr"):
        for item in items:
            if "full" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes ten minutes: -m full"))


@pytest.fixture
def given_seed():
    """What GRIDSCORE_SEED says, or None."""
    return None if _SEED is None else int(_SEED)
