"""An S3 server in this process, whose answers can fail in the ways that stores do."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import Counter
from urllib.parse import quote, unquote

import requests

KEY, SECRET, TOKEN = "AKIDNOBODYMAYSEE", "secret-that-nobody-may-see", "token-that-nobody-may-see"
BUCKET = "slides"


class ObjectStore:
    """Buckets on `url`. Objects may be read without a signature, as web servers have them.

    `faults` are functions of the method, the path and how often it was asked for, whose answer is
    None, a status, or one of "slow", "cut" (ends before it should) and "whole" (no parts); the
    first that has one counts. `asked` counts requests by path.
    """

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, *_args, **_kwargs):
                pass

        self.faults, self.dropped = [], set()
        self.asked = Counter()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._counting = threading.Lock()
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=Quiet
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        self.put_bucket(BUCKET)

    def _answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"])
        is_list = "list-type" in environ["QUERY_STRING"]
        if method == "GET":
            with self._counting:
                asked = f"{path}?list" if is_list else path
                self.asked[asked] += 1
                times = self.asked[asked]
            for fault in self.faults:
                how = fault("LIST" if is_list else method, path, times)
                if how == "slow":
                    time.sleep(0.2)
                elif how == "whole":
                    environ.pop("HTTP_RANGE", None)
                elif how == "cut":
                    start_response("200 OK", [("Content-Length", "1000")])
                    return [b"the beginning"]
                elif how is not None:
                    # Some servers repeat what was sent to them.
                    start_response(f"{how} Refused", [("Content-Type", "application/xml")])
                    reason = "ExpiredToken" if how == 400 else SECRET
                    body = f"<Error><Code>{reason}</Code><Key>{KEY}{SECRET}{TOKEN}</Key></Error>"
                    return [body.encode()]

        def start(status, headers, *more):
            kept = [(name, value) for name, value in headers if name.lower() not in self.dropped]
            return start_response(status, kept, *more)

        return self._moto(environ, start)

    def put_bucket(self, name):
        requests.put(f"{self.url}/{name}", headers={"x-amz-acl": "public-read"}).raise_for_status()

    def put(self, key, data):
        url = f"{self.url}/{BUCKET}/{quote(key)}"
        requests.put(url, data=data, headers={"x-amz-acl": "public-read"}).raise_for_status()

    def remove(self, key):
        requests.delete(f"{self.url}/{BUCKET}/{quote(key)}").raise_for_status()

    def upload(self, folder, prefix):
        """Put all files of a folder; returns the address of it."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.put(f"{prefix}/{file.relative_to(folder)}", file.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def address(self, scheme, prefix):
        """Of a folder, by a kind of address."""
        if scheme == "http":
            return f"{self.url}/{BUCKET}/{quote(prefix)}"
        return f"{scheme}://{BUCKET}/{prefix}"

    def environment(self, folder):
        """Variables with which stores are found here; the secrets among them are recognisable."""
        account = folder / "account.json"
        account.write_text(
            json.dumps(
                {
                    "gcs_base_url": self.url,
                    "disable_oauth": True,
                    "client_email": "",
                    "private_key": SECRET,
                    "private_key_id": KEY,
                }
            )
        )
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "GOOGLE_SERVICE_ACCOUNT": str(account),
        }

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def fails(pattern, how, times=None):
    """A fault of all requests for paths that a pattern matches, or of the first so many of each."""

    def fault(_, path, count):
        is_meant = re.search(pattern, path) and (times is None or count <= times)
        return how if is_meant else None

    return fault


@contextlib.contextmanager
def faulty(store, *faults):
    store.asked.clear()
    store.faults = list(faults)
    try:
        yield
    finally:
        store.faults = []


def find_secrets(*folders, text=""):
    """Files below folders that hold a secret, and whether a text does."""
    secrets = (KEY, SECRET, TOKEN)
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    found = [str(f) for f in files if any(s.encode() in f.read_bytes() for s in secrets)]
    return found + [s for s in secrets if s in text]
