"""This server's own certificate authority, made at first start and kept in the home.

The official Azure SDK speaks https only; its clients trust us through
`bundle.pem`: the public roots and ours.  The authority signs for this server's
names and nothing else (it is constrained to them).
"""

from __future__ import annotations

import ipaddress
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=365)
_RENEW = timedelta(days=30)  # a certificate with less left than this is made anew


@dataclass(frozen=True)
class Certificates:
    authority: Path
    certificate: Path
    key: Path
    bundle: Path


def ensure(folder: Path, host: str, *, now: datetime | None = None) -> Certificates:
    """Return this server's certificate for `host`, made or renewed where needed."""
    found = Certificates(
        folder / "ca.pem",
        folder / "cert.pem",
        folder / "key.pem",
        folder / "bundle.pem",
    )
    names = sorted({"localhost", "127.0.0.1", "::1", host} - {"0.0.0.0", "::"})
    marker = folder / "names.txt"  # written last: what is there is whole
    now = now or datetime.now(UTC)
    stamp = " ".join(names)
    if marker.exists():
        kept, _, expires = marker.read_text().partition("\n")
        if kept == stamp and datetime.fromisoformat(expires) - now > _RENEW:
            return found
    _make(folder, found, names, now)
    marker.write_text(f"{stamp}\n{(now + _LEAF_LIFE).isoformat()}")
    return found


def _make(folder: Path, found: Certificates, names: list[str], now: datetime) -> None:
    import certifi
    from cryptography.hazmat.primitives import serialization

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, authority_key = _authority(folder, found.authority, names, now)
    certificate, key = _signed(names, authority, authority_key, now)
    _write_key(found.key, key)
    pem = serialization.Encoding.PEM
    found.certificate.write_bytes(certificate.public_bytes(pem) + authority.public_bytes(pem))
    shutil.copyfile(certifi.where(), found.bundle)
    with found.bundle.open("ab") as file:
        file.write(b"\n" + authority.public_bytes(pem))


def _authority(
    folder: Path, path: Path, names: list[str], now: datetime
) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Finery local authority")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(_constraint(names), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / "ca.key", key)
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _signed(
    names: list[str],
    authority: x509.Certificate,
    authority_key: EllipticCurvePrivateKey,
    now: datetime,
) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Finery")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([_general(name) for name in names]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    return certificate, key


def _usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _constraint(names: list[str]) -> x509.NameConstraints:
    """Allow the authority these names only: a stolen key cannot pose as anyone else."""
    from cryptography import x509

    allowed: list[x509.GeneralName] = []
    for name in names:
        try:
            allowed.append(x509.IPAddress(ipaddress.ip_network(name)))
        except ValueError:
            allowed.append(x509.DNSName(name))
    return x509.NameConstraints(permitted_subtrees=allowed, excluded_subtrees=None)


def _general(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_key(path: Path, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives import serialization

    data = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
