"""Serves a viewer's pages, and DICOMweb of an archive, as one origin: `python viewer_server.py PAGES ARCHIVE`.

Prints the port that it listens on, on loopback. A path that is no file is the single-page application itself.
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

PASSED_ON = ("/dicom-web", "/wado")
ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Handler(SimpleHTTPRequestHandler):
    """One request: to the archive, or for a page."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, archive: str, **keywords: object) -> None:
        self.archive = archive
        super().__init__(*arguments, **keywords)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer with what the archive says, or with a file."""
        if self.path.startswith(PASSED_ON):
            self._pass_on()
            return
        if not Path(self.translate_path(urlsplit(self.path).path)).is_file():
            self.path = "/index.html"
        super().do_GET()

    def _pass_on(self) -> None:
        request = Request(self.archive + self.path, headers={"Accept": self.headers.get("Accept", "*/*")})
        try:
            answer = urlopen(request, timeout=60)
        except HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/octet-stream"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def end_headers(self) -> None:
        """Isolate the page, as the viewer's shared memory asks for."""
        for name, value in ISOLATED.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main(pages: str, archive: str) -> None:
    """Serve until killed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, archive=archive, directory=pages))
    print(server.server_address[1], flush=True)  # noqa: T201 - the test reads the port here
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
