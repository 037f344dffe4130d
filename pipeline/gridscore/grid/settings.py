"""How to reach the cluster: from options, `GRIDSCORE_*` environment variables and a settings file, in this order."""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gridscore.errors import SettingsError

SETTINGS_FILE = Path("gridscore.toml")


def _addresses(value: Any) -> Any:
    """A list as environment variables have it: JSON, or separated by commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("it begins like a JSON list, but is not one") from None
    return [address.strip() for address in value.split(",") if address.strip()]


def _address(text: str) -> str:
    """An address as the client takes it: host:port, or a host alone, for the ports from 5701 on."""
    text = text.strip()
    example = "write it as 10.0.0.5:5701 or hazelcast.example.com:5701"
    if bracketed := re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", text):
        host, port = bracketed[1], bracketed[2]
    elif text.count(":") > 1:
        host, port = text, None
    else:
        host, colon, port = text.partition(":")
        port = port if colon else None
    if not host:
        raise ValueError(f"`{text}` has no host: {example}")
    if bracketed or ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"`{text}` is not an address: {example}, IPv6 as [::1]:5701") from None
    elif not re.fullmatch(r"[\w.-]+", host):
        raise ValueError(f"`{text}` is not an address: {example}")
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        what = f"`{port}` is not a port" if port else "the port is missing"
        raise ValueError(f"`{text}`: {what}: {example}")
    return text


class GridSettings(BaseSettings):
    """Connection settings.

    Every field `x` can be given as an option or keyword, as the environment variable `GRIDSCORE_X` (lists separated
    by commas, or as JSON), or as a line of the settings file: `GRIDSCORE_CONFIG`, else `./gridscore.toml`, else
    `gridscore.toml` in the user's configuration folder. The first place that names a field wins.

    TLS and credentials are for Hazelcast Enterprise and are passed through: an open-source cluster has neither, and
    refuses a user name.
    """

    model_config = SettingsConfigDict(env_prefix="GRIDSCORE_", extra="ignore", frozen=True, validate_default=False)

    members: Annotated[list[Annotated[str, AfterValidator(_address)]], NoDecode, BeforeValidator(_addresses)] = Field(
        default=[], description="Addresses of members, host:port; any one of them will do."
    )
    cluster_name: str = Field(default="dev", description="Name of the cluster, as in its configuration.")
    connect_timeout: float = Field(default=10.0, gt=0, description="Seconds to look for a cluster before giving up.")
    invocation_timeout: float = Field(
        default=120.0, gt=0, description="Seconds after which a call that is being retried fails."
    )

    username: str | None = Field(default=None, description="Enterprise: user name.")
    password: SecretStr | None = Field(default=None, description="Enterprise: password.")
    token: SecretStr | None = Field(default=None, description="Enterprise: authentication token.")

    tls: bool = Field(default=False, description="Enterprise: speak TLS.")
    tls_ca_file: Path | None = Field(default=None, description="Certificates to trust, PEM; default: the system's.")
    tls_cert_file: Path | None = Field(default=None, description="Certificate of this client, PEM.")
    tls_key_file: Path | None = Field(default=None, description="Private key of this client, PEM.")
    tls_key_password: SecretStr | None = Field(default=None, description="Password of the private key.")
    tls_check_hostname: bool = Field(default=True, description="Refuse a certificate issued for another host.")

    sign_key: Path | None = Field(
        default=None, description="Ed25519 private key, PEM: models that are pushed are signed with it."
    )
    sign_key_password: SecretStr | None = Field(default=None, description="Password of that key.")
    trusted_keys: Annotated[list[Path], NoDecode, BeforeValidator(_addresses)] = Field(
        default=[], description="Ed25519 public keys, PEM: only models that one of them has signed are loaded."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- a .env file is not one of our three places
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- neither are Docker secrets
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options first, then the environment, then the file."""
        file = settings_file()
        sources = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls, file)) if file else sources

    @classmethod
    def load(cls, **options: Any) -> GridSettings:
        """Settings from all three places; an option that is None or empty counts as not given.

        Raises:
            SettingsError: A value is not of its type, a key of the file is unknown, or a named file does not exist.
        """
        given = {name: value for name, value in options.items() if value not in (None, [], ())}
        file = None
        try:
            file = settings_file()
            _refuse_unknown_keys(file)
            settings = cls(**given)
        except ValidationError as error:
            lines = [
                f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors(include_input=False)
            ]
            raise SettingsError("The connection settings are not valid: " + "; ".join(lines)) from None
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"The settings file {file} is not valid TOML: {error}") from None
        except UnicodeDecodeError:
            raise SettingsError(
                f"The settings file {file} is not UTF-8 text.", 'It is a TOML file: `members = ["10.0.0.5:5701"]`.'
            ) from None
        except OSError as error:
            raise SettingsError(
                f"The settings file {file or error.filename} cannot be read: {error.strerror}.",
                "Make it readable, or name another with GRIDSCORE_CONFIG or --settings.",
            ) from None
        settings._check_files()
        return settings

    def _check_files(self) -> None:
        for name in ("tls_ca_file", "tls_cert_file", "tls_key_file"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise SettingsError(f"{name}: there is no file {path}")
        if self.tls_key_file and not self.tls_cert_file:
            raise SettingsError("tls_key_file is given without tls_cert_file", "A key needs its certificate.")
        if (self.tls_ca_file or self.tls_cert_file) and not self.tls:
            raise SettingsError("TLS files are given, but TLS is off", "Set tls = true (GRIDSCORE_TLS=true).")
        if self.token and (self.username or self.password):
            raise SettingsError("Both a token and a user name are given", "Give one of them.")


def settings_file() -> Path | None:
    """The settings file in force, or None.

    Raises:
        SettingsError: `GRIDSCORE_CONFIG` names a file that does not exist.
    """
    import os

    if named := os.environ.get("GRIDSCORE_CONFIG"):
        path = Path(named)
        if not path.is_file():
            raise SettingsError(
                f"GRIDSCORE_CONFIG: there is no file {path}", "Set it to the path of a TOML file, or unset it."
            )
        return path
    for path in (SETTINGS_FILE, platformdirs.user_config_path("gridscore") / SETTINGS_FILE.name):
        if path.is_file():
            return path
    return None


def _refuse_unknown_keys(path: Path | None) -> None:
    if path is None:
        return
    with path.open("rb") as file:
        unknown = tomllib.load(file).keys() - GridSettings.model_fields.keys()
    if unknown:
        known = ", ".join(GridSettings.model_fields)
        raise SettingsError(f"{path}: unknown key {', '.join(sorted(unknown))}", f"Known keys: {known}.")
