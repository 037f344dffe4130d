"""Signed models: what nobody trusted has signed is not loaded, whatever the grid says of it."""

import json

import numpy as np
import pytest
import xgboost as xgb
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gridscore.errors import ModelError, UsageError
from gridscore.grid import GridSettings
from gridscore.grid.copies import payload
from gridscore.models import Registry
from gridscore.testing import StubCluster

PASSWORD = "hush"  # noqa: S105 -- of a key that the test makes


def model(seed=0):
    rows = np.random.default_rng(seed).normal(size=(50, 2)).astype(np.float32)
    return xgb.train({"nthread": 1}, xgb.DMatrix(rows, rows[:, 0], feature_names=["a", "b"]), 2)


def keys(folder, name, *, password=None, key=None):
    key = key or Ed25519PrivateKey.generate()
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
async def registry():
    """Gives registries of one cluster, with settings."""
    async with StubCluster(partitions=3) as stub:

        async def made(**settings):
            grid = await stub.connect()
            grid.settings = GridSettings(**settings)
            return Registry(grid)

        made.stub = stub
        yield made


async def test_a_model_that_a_trusted_key_has_signed_is_loaded_and_no_other(registry, tmp_path):
    private, public = keys(tmp_path, "ours", password=PASSWORD.encode())
    other, other_public = keys(tmp_path, "others")
    plain, ours, theirs = (
        await registry(),
        await registry(sign_key=private, sign_key_password=PASSWORD),
        await registry(sign_key=other),
    )
    unsigned = await plain.push(model(), "m")
    signed = await ours.push(model(), "m")
    foreign = await theirs.push(model(), "m")
    assert (unsigned.version, signed.version, foreign.version) == (1, 2, 3)
    assert (await ours.add(model(), "m")).is_new is False

    wary = await registry(trusted_keys=[public])
    assert (await wary.load(signed)).version == signed
    with pytest.raises(ModelError, match="m v1 is not signed"):
        await wary.load(unsigned)
    with pytest.raises(ModelError, match="m v3 has a signature that is of none of the trusted keys"):
        await wary.load(foreign)
    assert (await (await registry(trusted_keys=[public, other_public])).load(foreign)).version == foreign
    with pytest.raises(ModelError, match="is not signed"):
        await wary.push(model(1), "m")


@pytest.mark.parametrize(
    "change",
    [
        {"features": ["b", "a"]},
        {"categories": {"a": ["x", "y"]}},
        {"sha256": "0" * 64},
        {"signature": "A" * 88},
        {"signature": "not base64"},
        {"signature": ""},
    ],
)
async def test_what_was_changed_in_the_grid_is_refused(registry, tmp_path, change):
    private, public = keys(tmp_path, "ours")
    wary = await registry(sign_key=private, trusted_keys=[public])
    await wary.push(model(), "m")
    for number in range(registry.stub.partitions):
        partition = registry.stub.partition("gridscore.model-versions", number)
        for key, value in list(partition):
            changed = {**json.loads(payload(value)), **change}
            text = json.dumps(changed).encode()
            partition.put(key, value[:8] + len(text).to_bytes(4, "big") + text)
    fresh = await registry(trusted_keys=[public])
    with pytest.raises(ModelError, match=r"signed|signature"):
        await fresh.load(await fresh.resolve("m", version=1))


async def test_files_that_are_not_such_keys_are_named(registry, tmp_path):
    private, public = keys(tmp_path, "ours", password=b"hush")
    curve, curve_public = keys(tmp_path, "curve", key=generate_private_key(SECP256R1()))
    for settings, message in (
        ({"sign_key": tmp_path / "no.pem"}, "no.pem cannot be read"),
        ({"sign_key": public}, "ours.pub is not a private key"),
        ({"sign_key": private}, "GRIDSCORE_SIGN_KEY_PASSWORD"),
        ({"sign_key": private, "sign_key_password": "wrong"}, "GRIDSCORE_SIGN_KEY_PASSWORD"),
        ({"sign_key": curve}, "another kind than Ed25519"),
        ({"trusted_keys": [curve_public]}, "curve.pub is not an Ed25519 public key"),
        ({"trusted_keys": [private]}, "ours.pem is not an Ed25519 public key"),
    ):
        with pytest.raises(UsageError, match=message):
            await (await registry(**settings)).push(model(), "m")


def test_keys_are_named_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GRIDSCORE_TRUSTED_KEYS", f"{tmp_path}/a.pub, {tmp_path}/b.pub")
    assert GridSettings.load().trusted_keys == [tmp_path / "a.pub", tmp_path / "b.pub"]
