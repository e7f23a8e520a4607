"""Who may connect: keys, loopback, and what a browser may do."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vega_policy.spec import ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

MIN_KEY = 16
"""Characters of a key; shorter ones can be guessed."""


class ApiKeys:
    """The keys a server knows, as hashes."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Take the keys.

        Raises:
            ContractError: One is too short or holds a space.
        """
        for key in keys:
            if len(key) < MIN_KEY or key != key.strip() or " " in key:
                raise ContractError(
                    f"an API key has {len(key)} characters or a space in it; use at least {MIN_KEY} "
                    'without any, such as: python -c "import secrets; print(secrets.token_urlsafe())"'
                )
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._digests)

    def accept(self, header: str | None) -> bool:
        """Whether an ``Authorization: Api-Key ...`` header names one; in constant time.

        Every key is compared whichever fits, and of hashes, so that time tells neither the key nor
        its length.
        """
        scheme, _, key = (header or "").partition(" ")
        given = _digest(key.strip() if scheme.lower() == "api-key" else "")
        found = [hmac.compare_digest(given, known) for known in self._digests]
        return any(found)


def read_keys(path: Path) -> list[str]:
    """Read keys from a file, one a line; empty lines and ``#`` lines are none.

    Raises:
        ContractError: It cannot be read, or others may read it.
    """
    try:
        mode = path.stat().st_mode
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"the file of API keys cannot be read: {error}") from error
    if mode & 0o077:
        raise ContractError(f"{path} can be read by others; chmod 600 {path}")
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def require_safe_bind(host: str, *, has_keys: bool) -> None:
    """Refuse to listen for other machines without a key.

    Raises:
        ContractError: Anybody could drive the robot.
    """
    if not is_loopback(host) and not has_keys:
        raise ContractError(
            f"host is {host!r}, which other machines reach, and there is no API key; set "
            "serve.api_keys_file (or VEGA_API_KEYS), or serve.host=127.0.0.1"
        )


def is_foreign_page(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent this for a page of another site, or through another name of this one.

    A browser adds ``Origin`` to what a page's script sends; a name that does not mean this machine in
    ``Host`` is a page that had its name pointed here.
    """
    host, origin = headers.get("Host", ""), headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != host:
        return True
    return not is_loopback(_host_name(host))


def tls(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return the server's side of TLS, None without a certificate.

    Raises:
        ContractError: One of the two files is missing, or they cannot be used.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ContractError("TLS needs both serve.tls_cert and serve.tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ContractError(
            f"the certificate {cert} with key {key} cannot be used: {error}"
        ) from error
    return context


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _host_name(netloc: str) -> str:
    return (urlsplit(f"//{netloc}").hostname or "") if netloc else ""
