"""Schedulers at tls://, and what is said of certificates that do not do."""

from __future__ import annotations

import os
import shutil

import dask.config
import pytest

from densebatch.base.errors import InputError
from densebatch.workers import scheduler as module
from densebatch.workers.check import Requirements
from densebatch.workers.cluster import ask_worker
from densebatch.workers.scheduler import (
    Certificates,
    Scheduler,
    check_scheduler,
    find_address,
    read_certificates,
)
from tests.helpers.dask_processes import dask_processes, make_certificates

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(*make_certificates(tmp_path_factory.mktemp("own")))


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return Certificates(*make_certificates(tmp_path_factory.mktemp("others")))


@pytest.fixture(scope="module")
def running(tmp_path_factory, certificates):
    """Address of a scheduler with a worker."""
    options = (
        "--tls-ca-file", certificates.ca_file, "--tls-cert", certificates.cert,
        "--tls-key", certificates.key,
    )  # fmt: skip
    with dask_processes(tmp_path_factory.mktemp("tls")) as processes:
        processes.start_scheduler(*options, host="tls://127.0.0.1")
        processes.start_worker(*options)
        yield processes.address


def refused(scheduler):
    with pytest.raises(InputError) as told:
        check_scheduler(scheduler)
    return str(told.value)


def test_a_worker_is_asked_over_tls(running, certificates, monkeypatch):
    assert running.startswith("tls://")
    told = []
    scheduler = Scheduler(running, certificates=certificates)
    check_scheduler(scheduler, told.append)
    assert told == []
    assert ask_worker(scheduler, Requirements(), os.getpid) != os.getpid()
    # an address without a protocol is meant for the certificates that are given with it
    plain = Scheduler(running.removeprefix("tls://"), certificates=certificates)
    assert find_address(plain) == running
    check_scheduler(plain)


def test_certificates_of_dask_s_own_configuration_do(running, certificates):
    tls = {
        "distributed.comm.tls.ca-file": str(certificates.ca_file),
        "distributed.comm.tls.client.cert": str(certificates.cert),
        "distributed.comm.tls.client.key": str(certificates.key),
    }
    with dask.config.set(tls):
        check_scheduler(Scheduler(running))


def test_without_certificates(running):
    assert "tls:// needs certificates; give --tls-ca-file, --tls-cert" in refused(
        Scheduler(running)
    )


def test_of_another_authority(running, certificates, others):
    assert "authority of --tls-ca-file has not signed" in refused(
        Scheduler(running, certificates=others)
    )
    mixed = Certificates(certificates.ca_file, others.cert, others.key)
    assert "refuses the certificate of --tls-cert" in refused(
        Scheduler(running, certificates=mixed)
    )


def test_tcp_for_tls_and_tls_for_tcp(running, certificates, dask_executor, monkeypatch):
    monkeypatch.setattr(module, "_CONNECT_S", 1.0)
    place = running.removeprefix("tls://")
    assert f"speaks TLS; give its address as {running}" in refused(Scheduler(f"tcp://{place}"))
    plain = dask_executor.client.scheduler.address
    told = refused(Scheduler(plain.replace("tcp", "tls"), certificates=certificates))
    assert f"does not speak TLS; give its address as {plain}" in told
    told = refused(Scheduler(plain, certificates=certificates))
    assert "are for tls:// and this is tcp" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory; accepted is a PEM file"),
        ("x", "is no PEM file"),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----", "is encrypted; accepted is a key without"),
        ("-----BEGIN PRIVATE KEY-----\nx\n", "the certificates cannot be used ("),
    ],
)
def test_files_that_are_no_keys(certificates, tmp_path, content, words):
    key = tmp_path / "key.pem"
    if content is not None:
        key.write_text(content)
    bad = Certificates(certificates.ca_file, certificates.cert, key)
    assert words in refused(Scheduler("tls://127.0.0.1:1", certificates=bad))


def test_certificates_are_given_together_and_for_a_scheduler(tmp_path):
    assert read_certificates(None, None, None) is None
    with pytest.raises(ValueError, match="--tls-cert is missing"):
        read_certificates(tmp_path, None, None)
    with pytest.raises(ValueError, match="--tls-ca-file is missing"):
        read_certificates(None, None, tmp_path)
    with pytest.raises(ValueError, match="are for a running scheduler, and none is given"):
        read_certificates(tmp_path, tmp_path, None, has_scheduler=False)
