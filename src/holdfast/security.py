"""What a process shows and checks when it connects: certificates, and a user's password."""

from __future__ import annotations

from typing import Final

import msgspec


class Security(msgspec.Struct, frozen=True):
    """Certificates and a password, for clients and servers alike. The default has neither.

    The files are in PEM, and are read again for each connection. The password is in no ``repr``.
    """

    tls_ca: str = ""
    """The file of the authority whose certificates are trusted."""

    tls_cert: str = ""
    """The file of this process's own certificate."""

    tls_key: str = ""
    """The file of the certificate's key."""

    user: str = ""
    """The user's name, where the servers ask for a password."""

    password: str = ""
    """The password."""

    def __repr__(self) -> str:
        return f"Security(tls_ca={self.tls_ca!r}, tls_cert={self.tls_cert!r}, user={self.user!r})"

    @property
    def complete(self) -> bool:
        """Whether a server may be reached from other machines with it."""
        return all((self.tls_ca, self.tls_cert, self.tls_key, self.user, self.password))


NO_SECURITY: Final = Security()
