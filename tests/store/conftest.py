"""A store that ends with the test."""

import pytest

from .making import opened


@pytest.fixture
def store(database):
    one = opened(database)
    yield one
    one.close()
