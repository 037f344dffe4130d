"""Where connection settings come from, and what is wrong with them."""

import re

import pytest

from gridscore.errors import SettingsError
from gridscore.grid import GridSettings


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_options_win_over_environment_over_file(monkeypatch, tmp_path):
    (tmp_path / "gridscore.toml").write_text('members = ["file:1"]\ncluster_name = "file"\nconnect_timeout = 3\n')
    monkeypatch.setenv("GRIDSCORE_CLUSTER_NAME", "environment")

    settings = GridSettings.load(members=["option:1"])

    assert settings.members == ["option:1"]
    assert settings.cluster_name == "environment"
    assert settings.connect_timeout == 3


def test_members_of_the_environment_may_be_a_list_or_separated_by_commas(monkeypatch):
    monkeypatch.setenv("GRIDSCORE_MEMBERS", "a:1, b:2")
    assert GridSettings.load().members == ["a:1", "b:2"]
    monkeypatch.setenv("GRIDSCORE_MEMBERS", '["a:1", "b:2"]')
    assert GridSettings.load().members == ["a:1", "b:2"]


@pytest.mark.parametrize("address", ["host", "my_host:5701", "10.0.0.5:1", "a.example.com:65535", "::1", "[::1]:5701"])
def test_addresses_that_are_some(address):
    assert GridSettings.load(members=[address]).members == [address]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "`` has no host: write it as 10.0.0.5:5701"),
        (":5701", "`:5701` has no host"),
        ("host:", "the port is missing"),
        ("host:abc", "`abc` is not a port"),
        ("host:0", "`0` is not a port"),
        ("host:70000", "`70000` is not a port"),
        ("[::1]:x", "`x` is not a port"),
        ("[host]:5701", "is not an address"),
        ("a:1:2", "is not an address"),
        ("http://host:5701", "is not an address"),
        ("two words:5701", "is not an address"),
    ],
)
def test_invalid_addresses(address, message):
    with pytest.raises(SettingsError, match=re.escape(message)) as caught:
        GridSettings.load(members=[address])
    assert "Value error" not in caught.value.message


def test_secrets_do_not_show(monkeypatch):
    monkeypatch.setenv("GRIDSCORE_PASSWORD", "hunter2")
    assert "hunter2" not in repr(GridSettings.load(username="me"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connect_timeout": -1}, "connect_timeout"),
        ({"tls_ca_file": "nowhere.pem", "tls": True}, "there is no file"),
        ({"token": "t", "username": "u"}, "Both a token and a user name"),
    ],
)
def test_wrong_settings_are_told(options, message):
    with pytest.raises(SettingsError, match=message):
        GridSettings.load(**options)


def test_tls_files_without_tls_are_told(tmp_path):
    (tmp_path / "ca.pem").write_text("x")
    with pytest.raises(SettingsError, match="TLS is off"):
        GridSettings.load(tls_ca_file=tmp_path / "ca.pem")


def test_a_misspelt_key_of_the_file_is_told(tmp_path):
    (tmp_path / "gridscore.toml").write_text("memebers = []")
    with pytest.raises(SettingsError, match="unknown key memebers"):
        GridSettings.load()


def test_a_file_that_is_not_toml_is_told(tmp_path):
    (tmp_path / "gridscore.toml").write_text("= nonsense")
    with pytest.raises(SettingsError, match="not valid TOML"):
        GridSettings.load()


def test_a_file_that_is_not_text_is_told(tmp_path):
    (tmp_path / "gridscore.toml").write_bytes(b"\xff\xfe\x00members")
    with pytest.raises(SettingsError, match=r"gridscore\.toml is not UTF-8 text"):
        GridSettings.load()


def test_a_file_that_cannot_be_read_is_told(monkeypatch, tmp_path):
    (tmp_path / "gridscore.toml").write_text("")
    monkeypatch.setattr("pathlib.Path.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(SettingsError, match=r"gridscore\.toml cannot be read: Permission denied"):
        GridSettings.load()
