"""Avro records framed by a schema registry: their schemas, and the records as JSON texts.

Three kinds of requests are all that is asked of a registry. `confluent_kafka.schema_registry` would save a dozen lines
of them for eight more packages, cryptography among them, and reads answers of any size: what is in them comes from
whoever may write to the registry.
"""

from __future__ import annotations

import io
import json
import struct
import time
from typing import TYPE_CHECKING, Any

import fastavro
import httpx
import msgspec
from fastavro.schema import SchemaParseException, UnknownType

from gridscore.kafka import KafkaRefusedError
from gridscore.sources.base import SourceInterruptedError
from gridscore.sources.kafka.avro_limits import check_schema
from gridscore.sources.kafka.messages import NoEventError

if TYPE_CHECKING:
    from gridscore.sources.kafka.settings import KafkaSourceSettings

_FRAME = struct.Struct(">bI")
_SECONDS = 10.0
_MAX_SCHEMA = 4 << 20
_MAX_DEPTH = 16
_ASK_AGAIN_SECONDS = 10.0
_MAX_UNKNOWN = 1_000
_MAX_REFERENCES = 100
_NO_SCHEMA = (
    SchemaParseException,
    UnknownType,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    RecursionError,
    httpx.InvalidURL,
)

_encode = msgspec.json.Encoder(decimal_format="number").encode


class AvroReader:
    """Reads framed Avro records: a zero byte, the schema's id in four bytes, the record.

    Schemas are asked for once and kept. Blocks while one is asked for.
    """

    def __init__(self, settings: KafkaSourceSettings) -> None:
        assert settings.registry is not None  # noqa: S101 -- the settings go together
        self._url = settings.registry.rstrip("/")
        user = settings.registry_username
        try:
            verify = _trusted(settings.registry_ca_file)
        except OSError as error:
            raise KafkaRefusedError(
                f"`registry_ca_file`: {settings.registry_ca_file} cannot be read: {error}"
            ) from None
        self._client = httpx.Client(
            auth=(user, settings.registry_password) if user else None,
            verify=verify,
            timeout=_SECONDS,
            follow_redirects=False,
        )
        self._schemas: dict[int, Any] = {}
        self._unknown: dict[int, tuple[float, str]] = {}

    def check(self) -> None:
        """Ask for something, to find out whether we may.

        Raises SourceInterruptedError if the registry is away; KafkaRefusedError if it does not accept us, or we not its
        certificate.
        """
        self._ask("/schemas/types")  # not every registry has it, which is an answer as well

    def close(self) -> None:
        self._client.close()

    def __call__(self, value: bytes) -> bytes:
        """The JSON text of a record.

        Raises NoEventError if it is not an event, or does not fit its schema; SourceInterruptedError if the registry is
        away; KafkaRefusedError if it does not accept us.
        """
        if len(value) < _FRAME.size or value[0]:
            raise NoEventError("it has no frame of a schema registry: a zero byte and the schema's id")
        _, schema_id = _FRAME.unpack_from(value)
        schema = self._schemas.get(schema_id)
        if schema is None:
            schema = self._schemas[schema_id] = self._schema(schema_id)
        stream = io.BytesIO(value)
        stream.seek(_FRAME.size)
        try:
            record = fastavro.schemaless_reader(stream, schema, None)
            text = _encode(record)
        except Exception as error:  # noqa: BLE001 -- fastavro lets those of struct, codecs, decimals and dates through
            raise NoEventError(f"it does not fit schema {schema_id}: {str(error) or type(error).__name__}") from None
        if left := len(value) - stream.tell():
            raise NoEventError(f"it does not fit schema {schema_id}: {left} bytes are left over")
        return text

    def _schema(self, schema_id: int) -> Any:
        at, why = self._unknown.get(schema_id, (0.0, ""))
        if why and time.monotonic() - at < _ASK_AGAIN_SECONDS:
            raise NoEventError(why)
        try:
            return self._find(schema_id)
        except NoEventError as error:
            if len(self._unknown) >= _MAX_UNKNOWN:  # ids come from anybody's messages
                self._unknown.clear()
            self._unknown[schema_id] = (time.monotonic(), str(error))
            raise

    def _find(self, schema_id: int) -> Any:
        answer = self._ask(f"/schemas/ids/{schema_id}")
        if answer is None:
            raise NoEventError(f"the schema registry has no schema {schema_id}")
        if not isinstance(answer, dict):
            raise NoEventError(f"what the schema registry has as schema {schema_id} is not a schema")
        if answer.get("schemaType", "AVRO") != "AVRO":
            raise NoEventError(f"schema {schema_id} is not Avro but {answer['schemaType']}")
        try:
            named: dict[str, Any] = {}
            self._load_references(answer, named, [], 0)
            schema = fastavro.parse_schema(json.loads(answer["schema"]), named)
            check_schema(schema, named)
        except _NO_SCHEMA as error:
            raise NoEventError(f"schema {schema_id} is not valid: {error}") from None
        return schema

    def _load_references(self, answer: dict[str, Any], named: dict[str, Any], asked: list[str], depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError("its references go too deep")
        for reference in answer.get("references") or ():
            if reference["name"] in named:
                continue
            asked.append(reference["name"])
            if len(asked) > _MAX_REFERENCES:
                raise ValueError(f"it has more than {_MAX_REFERENCES} references")
            subject = httpx.URL(path=f"/{reference['subject']}").raw_path.decode().lstrip("/")
            found = self._ask(f"/subjects/{subject.replace('/', '%2F')}/versions/{int(reference['version'])}")
            if found is None:
                raise ValueError(f"the registry has no `{reference['subject']}` version {reference['version']}")
            self._load_references(found, named, asked, depth + 1)
            fastavro.parse_schema(json.loads(found["schema"]), named)

    def _ask(self, path: str) -> Any:
        """What the registry answers; None if it has no such thing."""
        try:
            with self._client.stream("GET", self._url + path) as response:
                body = b""
                for part in response.iter_bytes():
                    body += part
                    if len(body) > _MAX_SCHEMA:
                        raise NoEventError("the schema registry's answer is too large")
        except httpx.ConnectError as error:
            if "CERTIFICATE" in str(error).upper():
                raise KafkaRefusedError(
                    f"The certificate of the schema registry {self._url} is not accepted: {error}",
                    "Name the certificates to trust with `registry_ca_file`.",
                ) from None
            raise SourceInterruptedError(f"The schema registry {self._url} cannot be reached: {error}") from None
        except httpx.HTTPError as error:
            raise SourceInterruptedError(
                f"The schema registry {self._url} does not answer: {error or type(error).__name__}"
            ) from None
        status = response.status_code
        if status == httpx.codes.NOT_FOUND:
            return None
        if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise KafkaRefusedError(
                f"The schema registry {self._url} refuses us: {status} {response.reason_phrase}.",
                "Check `registry_username` and `registry_password`.",
            )
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status == httpx.codes.TOO_MANY_REQUESTS:
            raise SourceInterruptedError(f"The schema registry {self._url} answers {status}.")
        if status != httpx.codes.OK:
            raise KafkaRefusedError(
                f"{self._url} answers {status} {response.reason_phrase}: it is not a schema registry.",
                "`registry` is the URL up to, and without, `/schemas`.",
            )
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise KafkaRefusedError(
                f"{self._url} does not answer with JSON: it is not a schema registry.",
                "`registry` is the URL up to, and without, `/schemas`.",
            ) from None


def _trusted(file: str | None) -> Any:
    import ssl

    return True if file is None else ssl.create_default_context(cafile=file)
