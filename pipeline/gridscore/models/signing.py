"""Signatures of model versions, by Ed25519 keys: whoever may write into the cluster cannot make workers load a model.

What is signed is all that decides scores: the model's name, the SHA-256 of its bytes, and what its columns mean. The
number of the version, which the cluster gives, is not, nor is where an alias points.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from gridscore.errors import ModelError, UsageError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gridscore.models.version import ModelVersion

_FORMAT = "gridscore model 1"


def statement(version: ModelVersion) -> bytes:
    """The bytes that a signature of a version signs."""
    columns = version.features, version.feature_types, version.categories, version.definitions
    return msgspec.json.encode([_FORMAT, version.name, version.sha256, version.size, *columns], order="sorted")


def sign(version: ModelVersion, key_file: Path, password: str | None) -> str:
    """The signature of a version, base64.

    `key_file`: an Ed25519 private key, PEM; `password`: of the file, if it has one. Raises UsageError if the file is
    not such a key, or the extra `signing` is not installed.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError as error:
        raise missing_extra("`sign_key`", "signing", error) from None
    try:
        key = load_pem_private_key(_read(key_file), None if password is None else password.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: with or without a password, and it is the other
        raise UsageError(
            f"{key_file} is not a private key, or GRIDSCORE_SIGN_KEY_PASSWORD is not its password.",
            "`openssl genpkey -algorithm ed25519 -out key.pem` makes one.",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{key_file} is a private key of another kind than Ed25519.")
    return base64.b64encode(key.sign(statement(version))).decode()


def check_signature(version: ModelVersion, trusted: Sequence[Path]) -> None:
    """Refuse a version that none of the owners of these keys has signed.

    `trusted`: Ed25519 public keys, PEM. Raises ModelError if nobody, or somebody else, has signed it; UsageError if a
    file is not such a key, or the extra `signing` is not installed.
    """
    try:
        from cryptography.exceptions import InvalidSignature
    except ModuleNotFoundError as error:
        raise missing_extra("`trusted_keys`", "signing", error) from None
    keys = [_public_key(file) for file in trusted]
    if version.signature:
        try:
            signature = base64.b64decode(version.signature, validate=True)
        except ValueError:
            signature = b""
        for key in keys:
            try:
                key.verify(signature, statement(version))
            except InvalidSignature:
                continue
            return
    what = "has a signature that is of none of the trusted keys" if version.signature else "is not signed"
    raise ModelError(
        f"{version} {what}, and only signed models are loaded here.",
        "Push it with `sign_key` set to a key whose public part is among `trusted_keys`: docs/security.md.",
    )


@cache
def _public_key(file: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(file))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            f"{file} is not an Ed25519 public key in PEM.", "`openssl pkey -in key.pem -pubout -out key.pub` makes one."
        )
    return key


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(1 << 16)
    except OSError as error:
        raise UsageError(f"The key {file} cannot be read: {error.strerror}.") from None
