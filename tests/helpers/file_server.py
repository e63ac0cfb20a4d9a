"""A local HTTP server of files that can fail in the ways that servers do."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import subprocess
import threading


class FileServer:
    """Serves `files` (bytes by path, without the first slash) and counts what was asked for.

    `special[path]` is an HTTP status, or one of "truncate" (closes after half of the stated
    length), "hang" (holds the answer until `go` is set), "redirect:URL".
    """

    def __init__(self, files, special=(), certificate=None):
        self.files = dict(files)
        self.special = dict(special)
        self.asked = []
        self.go = threading.Event()
        self.stop_after = None
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://localhost:{self.server.server_port}"
        self.server.handle_error = lambda *_: None  # a client that refuses is no failure
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def answer(self, request):
        path = request.path.lstrip("/").partition("?")[0]
        self.asked.append(path)
        how = self.special.get(path, 200 if path in self.files else 404)
        if self.stop_after is not None and len(self.asked) > self.stop_after:
            how = "cut"  # as a server that dies: the connection ends without an answer
        if how == "cut":
            request.close_connection = True
        elif how == "hang":
            self.go.wait(10)
            self.send(request, self.files[path], 200)
        elif how == "truncate":
            self.send(request, self.files[path], 200, part=0.5)
        elif isinstance(how, str):
            request.send_response(302)
            request.send_header("Location", how.removeprefix("redirect:"))
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            self.send(request, self.files.get(path, b"no such file"), how)

    @staticmethod
    def send(request, body, status, part=1.0):
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: int(len(body) * part)])

    def close(self):
        self.go.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@contextlib.contextmanager
def serve(files, special=(), certificate=None):
    server = FileServer(files, special, certificate)
    try:
        yield server
    finally:
        server.close()


def make_certificate(folder):
    """Files of a certificate for `localhost` that nobody signed, and of its key."""
    folder.mkdir()
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key
