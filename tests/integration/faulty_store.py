"""An object store that fails at times: a proxy before a real one, which spoils one request in ten."""

from __future__ import annotations

import http.client
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SPOILED_EVERY = 10
# Then the connection is closed without an answer, as by a gateway that gives up.
HANG_S = float(os.environ.get("GALRAY_TEST_HANG_S", "0.3"))
FAULTS: dict[str, tuple[int, str] | None] = {
    "overloaded": (503, "SlowDown"),
    "failing": (500, "InternalError"),
    "hanging": None,
}
_NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "expect"}  # of one connection alone
_PATIENCE_S = 60


class FaultyStore(ThreadingHTTPServer):
    """The proxy; `spoiled` names the faults so far, and there are none while it is `at_peace`."""

    daemon_threads = True
    at_peace = False

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.behind = urlsplit(endpoint).netloc
        self.spoiled: list[str] = []
        self._lock, self._count = threading.Lock(), itertools.count(1)
        self._faults = itertools.cycle(FAULTS)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self) -> str | None:
        """Say what becomes of the next request; None for no fault."""
        with self._lock:
            if self.at_peace or next(self._count) % SPOILED_EVERY:
                return None
            self.spoiled.append(next(self._faults))
            return self.spoiled[-1]


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _store(self) -> FaultyStore:
        assert isinstance(self.server, FaultyStore)
        return self.server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self._store.next_fault()
        if fault is None:
            self._pass_on(body)
        elif answer := FAULTS[fault]:
            status, code = answer
            self._reply(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
        else:
            time.sleep(HANG_S)
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _pass_on(self, body: bytes) -> None:
        """Ask the real store, under the name by which the client knows this one: that is signed."""
        store = http.client.HTTPConnection(self._store.behind, timeout=_PATIENCE_S)
        store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _NOT_PASSED_ON:
                store.putheader(name, value)
        store.endheaders(body)
        answer = store.getresponse()
        self._reply(answer.status, dict(answer.getheaders()), answer.read())
        store.close()

    def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        told = {name.title(): value for name, value in headers.items() if name.lower() not in _NOT_PASSED_ON}
        if self.command != "HEAD":  # whose length is that of what it would have brought
            told["Content-Length"] = str(len(body))
        for name, value in told.items():
            self.send_header(name, value)
        try:
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except ConnectionError:  # who asked was stopped meanwhile
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def faulty_store(endpoint: str) -> Iterator[FaultyStore]:
    """Put such a proxy before the store at `endpoint`."""
    with FaultyStore(endpoint) as store:
        thread = threading.Thread(target=store.serve_forever)
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()
