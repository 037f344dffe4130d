"""What the simulations share."""

import logging

import pytest


@pytest.fixture
def quiet():
    """Log nothing: faults that are meant make thousands of lines."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
