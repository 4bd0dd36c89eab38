"""Private keys for sealing: reading, making, and the record that goes into DNS.

KeyFileError        the file is missing, unsafe, or holds no key that can be used; names it
"""

import base64
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

# RFC 8301, 3.2: signers should use at least 2048 bits.
MIN_BITS = 2048
MAX_OCTETS = 65_536


class KeyFileError(Exception):
    """A key file that cannot be used; the text names the file and says why."""


def load_key(path: Path) -> rsa.RSAPrivateKey:
    """Read an RSA private key in PEM form, of at least 2048 bits. Raises KeyFileError.

    The file may be read by its owner and its group (0640 with a group for the service), and
    written by its owner alone.
    """
    try:
        data = _read(path)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path}: not a private key in PEM form") from error
    except TypeError as error:
        raise KeyFileError(f"{path}: the key is encrypted") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise KeyFileError(f"{path}: not an RSA key")
    if key.key_size < MIN_BITS:
        raise KeyFileError(f"{path}: {key.key_size} bits, at least {MIN_BITS} are needed")
    return key


def may_hold_key(path: Path) -> bool:
    """Whether there may be a private key in the file: a certificate, say, holds none.

    What cannot be read may be one, so that load_key() says what is the matter with it.
    """
    try:
        with path.open("rb") as file:
            return b"PRIVATE KEY-----" in file.read(MAX_OCTETS)
    except OSError:
        return True


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        # The open file is looked at, not the path: that may be replaced in between.
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path}: not a file")
        if status.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
            mode = stat.S_IMODE(status.st_mode)
            raise KeyFileError(f"{path}: mode {mode:04o}, others can read or write it")
        return file.read(MAX_OCTETS)


def generate_key(bits: int = MIN_BITS) -> rsa.RSAPrivateKey:
    """Make a new RSA key."""
    return rsa.generate_private_key(65537, bits)


def write_key(path: Path, key: rsa.RSAPrivateKey) -> None:
    """Write a key in PEM form to a new file of mode 0600. Raises KeyFileError.

    A file that is there already stays as it is: it may be the key in use.
    """
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def key_record(key: rsa.RSAPrivateKey) -> bytes:
    """The TXT record that publishes the key (RFC 6376, 3.6.1)."""
    der = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(der)


def dns_record(domain: str, selector: str, key: rsa.RSAPrivateKey) -> str:
    """The record in the form of a zone file, in strings of 255 octets (RFC 1035, 3.3.14)."""
    text = key_record(key).decode("ascii")
    strings = [text[start : start + 255] for start in range(0, len(text), 255)]
    lines = "\n".join(f'    "{string}"' for string in strings)
    return f"{selector}._domainkey.{domain}. IN TXT (\n{lines} )\n"
