"""Certificates for tests, made by openssl: an authority, and what it (or another, or nobody) signed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.acceptance.peers import require


class Authority:
    """An authority with its folder; `ca` is its certificate."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        require("openssl")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ca, self._key = folder, folder / f"{name}.pem", folder / f"{name}.key"
        extensions = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={name}",
            "-keyout", self._key, "-out", self.ca, *extensions,
        )  # fmt: skip

    def issue(self, name: str, *, expired: bool = False, days: int = 30) -> tuple[Path, Path]:
        """Return certificate and key of `name`, which is good for 127.0.0.1 and localhost."""
        certificate, key, request = (self.folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:" + name + "\n")
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        dates = ["-not_before", "20200101000000Z", "-not_after", "20200102000000Z"] if expired else ["-days", str(days)]
        if expired and not self._knows("-not_after"):
            dates = ["-days", "-1"]
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-out", certificate,
            "-extfile", extensions, *dates,
        )  # fmt: skip
        return certificate, key

    def _knows(self, option: str) -> bool:
        done = subprocess.run(["openssl", "x509", "-help"], capture_output=True, text=True, check=False)
        return option in done.stdout + done.stderr

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
