"""Private authorities for tests, and the certificates that they sign: also anew, and for others."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from holdfast.security import Security

DAY = datetime.timedelta(days=1)


class Authority:
    """An authority with its files in a directory: ``authority.pem``, ``node.pem`` and
    ``node.key``."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._build(self._subject, self._key, DAY, True).sign(
            self._key, hashes.SHA256()
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        (directory / "authority.pem").write_bytes(self.pem)
        (directory / "authority.key").write_bytes(_private(self._key))

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        lasts: datetime.timedelta,
        ca: bool,
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + lasts)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )

    def issue(self, *names: str, lasts: datetime.timedelta = DAY) -> tuple[bytes, bytes]:
        """A new certificate and its key, for this machine or for other names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
        own = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        alternatives = [x509.DNSName(name) for name in names] or own
        builder = self._build(subject, key, lasts, False)
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), _private(key)

    def security(self, *names: str, lasts: datetime.timedelta = DAY) -> Security:
        """A certificate in files, with a user and a password that settings have to quote."""
        certificate, key = self.issue(*names, lasts=lasts)
        (self.directory / "node.pem").write_bytes(certificate)
        (self.directory / "node.key").write_bytes(key)
        paths = [str(self.directory / name) for name in ("authority.pem", "node.pem", "node.key")]
        return Security(*paths, user="holdfast", password='s3"cret {x}')


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificates(directory: Path, lasts: datetime.timedelta = DAY) -> Security:
    """A private authority, and a certificate of it for this machine."""
    return Authority(directory).security(lasts=lasts)
