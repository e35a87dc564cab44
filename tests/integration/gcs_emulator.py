"""Google Cloud Storage on this machine: ``python -m tests.integration.gcs_emulator PORT BUCKET``.

The emulator serves one connection after the other, idle ones too, and takes no notice of conditions. Here
it serves all connections, looks at one request after the other, and keeps the condition that galray and
pyarrow set: that an object be created and none replaced.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

Handler = Callable[[Any, Any, Any], None]

_upload = objects._multipart_upload
_turn = threading.Lock()


def one_at_a_time(handler: Handler) -> Handler:
    """Look at a request once those before it are through: the emulator's memory is not made for threads.

    Nobody waits for a network meanwhile: a client that leaves one answer unread until it has another would
    wait for ever.
    """

    def handle(request: Any, response: Any, storage: Any) -> None:
        _ = request.data  # read from the connection, and kept; the answer is sent after this
        with _turn:
            handler(request, response, storage)

    return handle


def upload_on_condition(request: Any, response: Any, storage: Any) -> None:
    """Refuse an upload with ``ifGenerationMatch=0`` where an object stands, as Google does."""
    if request.query.get("ifGenerationMatch") == ["0"] and stands(request, storage):
        response.status = HTTPStatus.PRECONDITION_FAILED
        response.json({"error": {"code": 412, "message": "conditionNotMet"}})
    else:
        _upload(request, response, storage)


def stands(request: Any, storage: Any) -> bool:
    """Whether the object that is to be uploaded is there already."""
    name = request.query.get("name", [request.data["meta"].get("name")])[0]
    try:
        storage.get_file_obj(request.params["bucket_name"], name)
    except NotFound:
        return False
    return True


if __name__ == "__main__":
    server.server.HTTPServer = ThreadingHTTPServer
    objects._multipart_upload = upload_on_condition
    table: Any = server.HANDLERS
    for _, handlers in table:
        handlers.update({method: one_at_a_time(answer) for method, answer in handlers.items()})
    server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
