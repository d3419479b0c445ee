"""A real viewer beside the archive: OHIF's files, served on this machine alone, and DICOMweb under its address."""

from __future__ import annotations

import http.server
import json
import mimetypes
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from scripts.command.locations import ROOT

__all__ = ["FOLDER", "available", "serving"]

HOST = "127.0.0.1"
FOLDER = ROOT / ".viewer" / "package" / "dist"  # where make viewer puts it
_WEB = "/dicom-web"
# Without a proxy, whatever the environment says: the archive is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def available(folder: Path = FOLDER) -> str:
    """What is missing to show studies, in words; "" when nothing is."""
    if (folder / "index.html").is_file() and (folder / "app-config.js").is_file():
        return ""
    return f"{folder} holds no OHIF viewer; make viewer fetches it from npm (@ohif/app, MIT), once"


@contextmanager
def serving(archive: str, folder: Path = FOLDER, port: int = 0) -> Iterator[str]:
    """Serve the viewer as long as the block does.

    Args:
        archive: address of `scripts.dicom.archive.running`.
        folder: ``dist`` of the npm package @ohif/app.
        port: of HTTP; 0: any that is free.

    Yields:
        its address, "http://127.0.0.1:PORT".

    Raises:
        ValueError: when the folder holds no viewer.
    """
    if missing := available(folder):
        raise ValueError(missing)
    server = _Server((HOST, port), _Handler)
    server.archive, server.folder = archive, folder.resolve()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(http.server.ThreadingHTTPServer):
    archive: str
    folder: Path

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}"

    def config(self) -> bytes:
        """The viewer's configuration: this archive, and nothing outside of this machine."""
        root = self.address + _WEB
        source = {
            "friendlyName": "archive", "name": "archive", "wadoUriRoot": root, "qidoRoot": root, "wadoRoot": root,
            "qidoSupportsIncludeField": False, "imageRendering": "wadors", "thumbnailRendering": "wadors",
            "enableStudyLazyLoad": True, "supportsFuzzyMatching": False, "supportsWildcard": True,
            "omitQuotationForMultipartRequest": True,
        }  # fmt: skip
        kind = "@ohif/extension-default.dataSourcesModule.dicomweb"
        content: dict[str, Any] = {
            "routerBasename": "/", "extensions": [], "modes": [], "showStudyList": True, "maxNumberOfWebWorkers": 2,
            "investigationalUseDialog": {"option": "never"}, "defaultDataSourceName": "dicomweb",
            "dataSources": [{"namespace": kind, "sourceName": "dicomweb", "configuration": source}],
        }  # fmt: skip
        return f"window.config = {json.dumps(content)};".encode()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """No line a request: addresses hold UIDs of patients' studies."""

    def do_GET(self) -> None:
        """A file of the viewer, its configuration, or what the archive answers."""
        if self.headers.get("Host") != self.server.address.removeprefix("http://"):
            self._send(HTTPStatus.FORBIDDEN, b"ask for it by the address that it was started with", "text/plain")
        elif self.path.startswith(f"{_WEB}/"):
            self._ask_archive()
        elif self.path == "/app-config.js":
            self._send(HTTPStatus.OK, self.server.config(), "text/javascript")
        else:
            file = (self.server.folder / self.path.partition("?")[0].lstrip("/")).resolve()
            if not file.is_relative_to(self.server.folder) or not file.is_file():
                file = self.server.folder / "index.html"  # the viewer's own addresses
            self._send(HTTPStatus.OK, file.read_bytes(), mimetypes.guess_type(file.name)[0])

    def _ask_archive(self) -> None:
        accepted = {"Accept": self.headers.get("Accept", "*/*")}
        try:
            with _opener.open(urllib.request.Request(self.server.archive + self.path, headers=accepted)) as answer:
                self._send(answer.status, answer.read(), answer.headers.get("Content-Type"))
        except urllib.error.HTTPError as error:
            self._send(error.code, error.read(), error.headers.get("Content-Type"))
        except OSError as error:
            self._send(HTTPStatus.BAD_GATEWAY, f"the archive does not answer: {error}".encode(), "text/plain")

    def _send(self, status: int, body: bytes, kind: str | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        # Its decoders share memory between threads, which browsers allow to isolated pages only.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()
        self.wfile.write(body)
