"""Key files: refused when unsafe, never overwritten, published as DNS wants it."""

import base64
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from aliasmilter.config import ARCSection, ConfigError
from aliasmilter.forwarding.keys import (
    KeyFileError,
    dns_record,
    key_record,
    load_key,
    write_key,
)
from aliasmilter.forwarding.outbound import load_keyring
from aliasmilter.forwarding.signature import read_key
from tests.harness.signing import key, pem


def test_a_key_is_written_with_mode_0600_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "arc.pem"
    write_key(path, key())
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).private_numbers() == key().private_numbers()


def test_a_key_in_use_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "arc.pem"
    path.write_text("precious")
    with pytest.raises(KeyFileError, match=re.escape(str(path))):
        write_key(path, key())
    assert path.read_text() == "precious"


def _file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "arc.pem"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_row_17_a_missing_key_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"none\.pem: No such file"):
        load_key(tmp_path / "none.pem")


def test_row_17_a_folder_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=re.escape(str(tmp_path))):
        load_key(tmp_path)


def test_row_17_a_small_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"arc\.pem: 1024 bits"):
        load_key(_file(tmp_path, pem(key(bits=1024))))


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o666, 0o660, 0o602])
def test_row_17_a_key_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KeyFileError, match=f"arc.pem: mode {mode:04o}"):
        load_key(_file(tmp_path, pem(key()), mode))


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o640, 0o440])
def test_owner_and_group_may_read_a_key(tmp_path: Path, mode: int) -> None:
    assert load_key(_file(tmp_path, pem(key()), mode)).key_size == 2048


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_row_17_a_file_without_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(KeyFileError, match=r"arc\.pem: not a private key"):
        load_key(_file(tmp_path, content))


def test_row_17_a_public_key_is_refused(tmp_path: Path) -> None:
    content = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(b"x" * 99) + b"\n"
    with pytest.raises(KeyFileError, match="not a private key"):
        load_key(_file(tmp_path, content))


def test_row_17_an_encrypted_key_is_refused(tmp_path: Path) -> None:
    content = key().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    with pytest.raises(KeyFileError, match=r"arc\.pem: the key is encrypted"):
        load_key(_file(tmp_path, content))


def test_row_17_another_kind_of_key_is_refused(tmp_path: Path) -> None:
    content = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with pytest.raises(KeyFileError, match="not an RSA key"):
        load_key(_file(tmp_path, content))


def test_only_keys_in_folders_named_like_domains_are_loaded_beside_the_first(
    tmp_path: Path,
) -> None:
    first = _file(tmp_path, pem(key()))
    good = pem(key())
    certificate = b"-----BEGIN CERTIFICATE-----\n"
    for name, content, mode in (
        ("own.example/s1.pem", good, 0o600),
        ("own.example/fullchain.pem", certificate, 0o644),
        ("tls/server.pem", good, 0o644),
        ("conf.d/server.pem", good, 0o644),
        (".ssl/server.pem", good, 0o644),
        ("own.example/my server.pem", good, 0o644),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    settings = ARCSection(enabled=True, domain="example.net", selector="arc", key_file=first)
    keyring = load_keyring(settings)
    assert keyring is not None
    assert set(keyring.others) == {("own.example", "s1")}
    (tmp_path / "own.example/s1.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"own\.example/s1\.pem: mode 0644"):
        load_keyring(settings)


def test_the_dns_record_is_a_line_of_a_zone_file() -> None:
    text = dns_record("example.net", "arc2026", key())
    strings = re.findall(r'"([^"]*)"', text)
    assert text.startswith("arc2026._domainkey.example.net. IN TXT (")
    assert all(len(string) <= 255 for string in strings)
    assert "".join(strings).encode() == key_record(key())
    public, _ = read_key(key_record(key()))
    assert public == key().public_key()
