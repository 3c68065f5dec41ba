"""What a connection shows and checks when it uses TLS: read from the files again for each
connection.

Certificates are renewed while processes run. A process that loaded them once could not connect
again after the old ones have ended. Files that are being written may not fit each other for a
moment: then the last ones that did are used on.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from holdfast.errors import ConfigError

_logger = logging.getLogger(__name__)


class Certificates:
    """The files of one process, in PEM. ``wanted``: whether TLS is a condition, so that nothing is
    said without it."""

    def __init__(
        self, authority: str = "", certificate: str = "", key: str = "", *, wanted: bool = False
    ) -> None:
        self.authority = authority
        self._certificate = certificate
        self._key = key
        self.wanted = wanted or bool(authority or certificate)
        self._last: ssl.SSLContext | None = None
        self._trouble = ""

    def check(self) -> None:
        """Read the files, if TLS is wanted. Raises `ConfigError` for files that cannot be used."""
        if self.wanted:
            self._last = self._load()

    def context(self) -> ssl.SSLContext:
        """For one connection. Raises `ConfigError` if the files cannot be used, and never could."""
        try:
            self._last = self._load()
        except ConfigError as error:
            if self._last is None:
                raise
            if str(error) != self._trouble:
                _logger.warning("%s; the ones that were read before are used", error)
            self._trouble = str(error)
        else:
            self._trouble = ""
        return self._last

    def _load(self) -> ssl.SSLContext:
        for path in (self.authority, self._certificate, self._key):
            if path and not Path(path).is_file():
                raise ConfigError(
                    f"there is no file {path}: tls_ca, tls_cert and tls_key are files in PEM"
                )
        try:
            context = ssl.create_default_context(cafile=self.authority or None)
            if self._certificate:
                context.load_cert_chain(
                    self._certificate, self._key or None, password=_no_passphrase
                )
        except (ssl.SSLError, OSError, ValueError) as error:
            names = ", ".join(
                path for path in (self.authority, self._certificate, self._key) if path
            )
            raise ConfigError(f"the certificates cannot be used ({names}): {error}") from None
        return context


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted, and nobody is there to type its passphrase")
