"""A store of objects, and the environment that finds it."""

import pytest

from tests.helpers.object_store import ObjectStore


@pytest.fixture(scope="session")
def running_store():
    pytest.importorskip("obstore")
    pytest.importorskip("moto")
    store = ObjectStore()
    yield store
    store.close()


@pytest.fixture
def store(running_store, tmp_path_factory, monkeypatch):
    """The server, without faults; failing requests are given up after two more tries."""
    from densebatch.remote import store as remote_store

    for name, value in running_store.environment(tmp_path_factory.mktemp("account")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote_store, "MAX_RETRIES", 2)
    monkeypatch.setattr(remote_store, "FIRST_WAIT_S", 0.05)
    yield running_store
    running_store.faults, running_store.dropped = [], set()
