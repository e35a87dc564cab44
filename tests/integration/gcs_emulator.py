"""Google Cloud Storage on this machine: ``python -m tests.integration.gcs_emulator PORT BUCKET``.

The emulator serves one connection after the other, idle ones too, and takes no notice of conditions. Here
it serves all connections, one request after the other, and keeps the condition that galray and pyarrow set:
that an object be created and none replaced.
"""

from __future__ import annotations

import sys
import threading
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

_upload = objects._multipart_upload
_one_at_a_time = threading.Lock()


class OneAtATime(server.Router):
    """Answers a request once those before it are answered: the emulator's memory is not made for threads."""

    def handle(self, method: str) -> None:
        with _one_at_a_time:
            super().handle(method)


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
    server.Router, objects._multipart_upload = OneAtATime, upload_on_condition
    server.create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
