"""Fixtures of the whole suite. Must not import TensorFlow: most tests of data and records do without it."""

import os

import numpy as np
import pytest

import semopo_tf  # noqa: F401  (sets the environment of TensorFlow before any test imports it)


@pytest.fixture(autouse=True, scope="session")
def cache_home(tmp_path_factory):
    """Compiled programs of the tests go where the tests go."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator seeded by the test's own name: adding a test changes the numbers of no other."""
    return np.random.default_rng(list(request.node.name.encode()))
