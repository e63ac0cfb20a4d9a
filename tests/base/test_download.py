"""One file from a server: whole and accepted under its name, or not there at all."""

from __future__ import annotations

import logging
import shutil
import threading

import pytest

from densebatch.base.download import DownloadError, download
from densebatch.base.errors import InputError
from tests.helpers.file_server import make_certificate, serve

DATA = bytes(range(256)) * 4000  # several chunks


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "localhost")


def accept_all(path):
    assert path.read_bytes() == DATA


def refuse(url, path, accept=accept_all):
    """The error, after the checks that hold for all of them."""
    before = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else None
    with pytest.raises(DownloadError) as caught:
        download(url, path, accept)
    assert "\n" not in str(caught.value)
    if before is not None:
        assert sorted(p.name for p in path.parent.iterdir()) == before
    return caught.value


def test_a_file_gets_its_name_when_it_is_accepted(tmp_path):
    path = tmp_path / "new" / "folder" / "a"
    seen = []

    def look(partial):
        accept_all(partial)
        seen.append((partial.parent, partial.suffix, path.exists()))

    with serve({"a": DATA}) as server:
        download(f"{server.url}/a", path, look)
    assert seen == [(path.parent, ".partial", False)]
    assert path.read_bytes() == DATA
    assert [p.name for p in path.parent.iterdir()] == ["a"]


def test_a_file_that_is_there_is_replaced(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with serve({"a": DATA}) as server:
        download(f"{server.url}/a", tmp_path / "a", accept_all)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_file_that_is_not_accepted_is_not_kept(tmp_path):
    (tmp_path / "a").write_bytes(b"old")

    def refuse_all(partial):
        raise InputError("not this one")

    with serve({"a": DATA}) as server, pytest.raises(InputError, match="not this one"):
        download(f"{server.url}/a", tmp_path / "a", refuse_all)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(
    ("how", "reason", "hopeless"),
    [
        (404, "{host} answers 404 Not Found", False),
        (403, "{host} answers 403 Forbidden", False),
        (429, "{host} answers 429 Too Many Requests", True),
        (503, "{host} answers 503 Service Unavailable", True),
        (599, "{host} answers 599", True),
        ("truncate", "the connection broke off before the whole file came", False),
        ("cut", "no connection to {host}, or it was lost: offline?", True),
        ("redirect:/a", "Exceeded 30 redirects.", False),
    ],
)
def test_a_failure_is_one_sentence_and_leaves_nothing(tmp_path, how, reason, hopeless):
    with serve({"a": DATA}, {"a": how}) as server:
        error = refuse(f"{server.url}/a", tmp_path / "a")
        host = server.url.removeprefix("http://")
    assert str(error) == f"{server.url}/a: cannot be fetched ({reason.format(host=host)})"
    assert error.hopeless == hopeless


def test_offline(tmp_path):
    with serve({}) as server:
        url = f"{server.url}/a"
    error = refuse(url, tmp_path / "a")
    assert str(error).endswith("or it was lost: offline?)")
    assert error.hopeless


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with serve({"a": DATA}) as server:
        error = refuse(f"{server.url}/a", tmp_path / "file" / "a")
        assert server.asked == []
    assert str(error) == f"{tmp_path / 'file' / 'a'}: cannot be written (File exists)"
    assert error.hopeless


def test_other_kinds_of_addresses(tmp_path):
    for url in ("ftp://a/b", "file:///etc/passwd", "/etc/passwd", "", "http://example.org/a",
                "http://localhost.example.org/a", "http://localhost@example.org/a"):  # fmt: skip
        error = refuse(url, tmp_path / "a")
        assert str(error) == f"{url}: accepted are addresses that begin with https://"


def test_two_at_once_do_not_disturb_each_other(tmp_path):
    with serve({"a": DATA}, {"a": "hang"}) as server:
        threads = [
            threading.Thread(target=download, args=(f"{server.url}/a", tmp_path / "a", accept_all))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        server.go.set()
        for thread in threads:
            thread.join()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", DATA)]


def test_a_fetched_file_is_an_event(tmp_path, caplog):
    caplog.set_level(logging.INFO, "densebatch")
    with serve({"a": DATA}) as server:
        download(f"{server.url}/a", tmp_path / "a", accept_all)
    (record,) = caplog.records
    assert record.event == "file fetched"
    assert record.fields["seconds"] >= 0
    expected = {"url": f"{server.url}/a", "file": str(tmp_path / "a"), "n_bytes": len(DATA)}
    assert record.fields.items() >= expected.items()


# certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    return make_certificate(tmp_path_factory.mktemp("tls") / "made")


def test_certificate_is_verified(tmp_path, monkeypatch, certificate):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    with serve({"a": DATA}, certificate=certificate) as server:
        error = refuse(f"{server.url}/a", tmp_path / "a")
        host = server.url.removeprefix("https://")
        reason = f"the certificate of {host} is not accepted"
        assert str(error) == f"{server.url}/a: cannot be fetched ({reason})"
        assert server.asked == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
        download(f"{server.url}/a", tmp_path / "a", accept_all)


def test_no_way_from_https_to_http(tmp_path, monkeypatch, certificate):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with serve({"a": DATA}) as plain:
        special = {"a": f"redirect:{plain.url}/a", "b": "redirect:/c"}
        with serve({"c": DATA}, special, certificate) as server:
            error = refuse(f"{server.url}/a", tmp_path / "a")
            assert str(error) == f"{server.url}/a: leads to {plain.url}/a, which is not encrypted"
            assert plain.asked == []
            download(f"{server.url}/b", tmp_path / "b", accept_all)
            assert server.asked == ["a", "b", "c"]
