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

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import Router, create_server, server

_handle, _upload = Router.handle, objects._multipart_upload
_one_at_a_time = threading.Lock()


def handle(router: Router, method: str) -> None:
    """Answer a request once those before it are answered: the emulator's memory is not made for threads."""
    with _one_at_a_time:
        _handle(router, method)


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
    server.HTTPServer = ThreadingHTTPServer
    Router.handle, objects._multipart_upload = handle, upload_on_condition
    create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
