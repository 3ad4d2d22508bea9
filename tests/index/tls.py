"""TLS in front of a server of the tests that has none: an authority, and a thread that ends the encryption."""

from __future__ import annotations

import datetime
import selectors
import socket
import ssl
import struct
import threading
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SSL_REQUEST = struct.pack("!ii", 8, 80_877_103)
"""What a client of PostgreSQL sends first, to ask for TLS; the answer is one letter."""


class Authority:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = folder / f"{name}.crt"
        self._write(self.certificate, self._sign(name, self._key, is_authority=True))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Make a certificate for 127.0.0.1, and its key; return their files."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, secret = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        self._write(certificate, self._sign(name, key, is_authority=False))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        secret.chmod(0o600)
        return certificate, secret

    def _sign(self, name: str, key: ec.EllipticCurvePrivateKey, *, is_authority: bool) -> x509.Certificate:
        subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, self._name))
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        return builder.add_extension(names, critical=False).sign(self._key, hashes.SHA256())

    def _write(self, path: Path, certificate: x509.Certificate) -> None:
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


class TlsFront:
    """A port on 127.0.0.1 that speaks TLS, and passes on what it is told to a server that does not.

    Args:
        port: Port of that server on 127.0.0.1.
        certificate: What the port shows, and its key.
        is_postgres: A client asks for TLS first, as those of PostgreSQL do; else it begins at once, with HTTP/2.
        client_authority: Who must have signed what a client shows; None: it need show nothing.
    """

    def __init__(
        self, port: int, certificate: tuple[Path, Path], *, is_postgres: bool, client_authority: Authority | None = None
    ) -> None:
        self._target = port
        self._is_postgres = is_postgres
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        if not is_postgres:
            self._context.set_alpn_protocols(["h2"])
        if client_authority is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(client_authority.certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.num_encrypted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # a thread that waits for it wakes up
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                if self._is_postgres:
                    if client.recv(len(SSL_REQUEST), socket.MSG_WAITALL) != SSL_REQUEST:
                        return
                    client.sendall(b"S")
                with (
                    self._context.wrap_socket(client, server_side=True) as encrypted,
                    socket.create_connection(("127.0.0.1", self._target)) as plain,
                ):
                    self.num_encrypted += 1
                    _pass_on(encrypted, plain)
            except OSError:  # among them ssl.SSLError: the client does not trust the certificate
                return


def _pass_on(encrypted: ssl.SSLSocket, plain: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(encrypted, selectors.EVENT_READ, plain)
        selector.register(plain, selectors.EVENT_READ, encrypted)
        while True:
            for key, _ in selector.select():
                source: socket.socket = key.fileobj  # type: ignore[assignment]
                data = source.recv(65_536)
                while isinstance(source, ssl.SSLSocket) and source.pending():
                    data += source.recv(source.pending())
                if not data:
                    return
                key.data.sendall(data)
