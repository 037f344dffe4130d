"""The Open Inference Protocol by gRPC: each call becomes a request by REST, so gate, bounds and answers are its.

The messages are made here, in a pool of their own: the classes that protoc would write clash with those of a client in
the same process, and are bound to one release of protobuf.
"""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
import msgspec
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from gridscore.errors import UsageError
from gridscore.serve.inference import LENGTH

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import ASGIApp, Message

    from gridscore.serve.settings import ServeSettings

_log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
_PACKAGE = "inference"
_TENSOR = "name datatype shape:int64* parameters:InferParameter@ contents:InferTensorContents"
_MODEL = "model_name model_version id parameters:InferParameter@"

# As the specification has them, fields in the order of their numbers: `name`, `name:type`, `*` for repeated, `@` for a
# map from strings.
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live:bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready:bool",
    "ModelReadyRequest": "name version",
    "ModelReadyResponse": "ready:bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name version extensions*",
    "ModelMetadataRequest": "name version",
    "TensorMetadata": "name datatype shape:int64*",
    "ModelMetadataResponse": "name versions* platform inputs:TensorMetadata* outputs:TensorMetadata*",
    "InferParameter": "bool_param:bool int64_param:int64 string_param",
    "InferTensorContents": "bool_contents:bool* int_contents:int32* int64_contents:int64* uint_contents:uint32* "
    "uint64_contents:uint64* fp32_contents:float* fp64_contents:double* bytes_contents:bytes*",
    "InferInputTensor": _TENSOR,
    "InferRequestedOutputTensor": "name parameters:InferParameter@",
    "ModelInferRequest": f"{_MODEL} inputs:InferInputTensor* outputs:InferRequestedOutputTensor* "
    "raw_input_contents:bytes*",
    "InferOutputTensor": _TENSOR,
    "ModelInferResponse": f"{_MODEL} outputs:InferOutputTensor* raw_output_contents:bytes*",
}
_ONE_OF = {"InferParameter": "parameter_choice"}

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Where a tensor's numbers are, by its type, unless they are raw.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}

CLOSE_SECONDS = 3.0
_CALLS = 1_000  # that are under way at most; what comes beyond is refused


class GrpcServer:
    """Serves the protocol on a port of its own, beside the HTTP server.

    `app`: what the HTTP server serves, behind its gate. `address`: where it listens, once it is open: `127.0.0.1:8001`.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._server: grpc.aio.Server | None = None
        self.address = ""

    async def open(self) -> None:
        """Begin to listen. Raises UsageError if the address cannot be listened on."""
        settings = self._settings
        options = (
            ("grpc.max_receive_message_length", settings.max_body),
            ("grpc.so_reuseport", 0),  # or two servers could share a port unnoticed
            ("grpc.max_concurrent_streams", _CALLS),
        )
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_CALLS)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, self._handlers())])
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            if (credentials := _credentials(settings)) is None:
                port = server.add_insecure_port(f"{host}:{settings.grpc}")
            else:
                port = server.add_secure_port(f"{host}:{settings.grpc}", credentials)
        except RuntimeError:
            raise UsageError(
                f"Gridscore cannot listen on {host}:{settings.grpc} for gRPC.",
                "Is something else listening there? --grpc names another port.",
            ) from None
        await server.start()
        self._server, self.address = server, f"{host}:{port}"
        _log.info("Serving gRPC at %s", self.address, extra={"action": "listening"})

    async def close(self) -> None:
        """Stop listening; calls under way have `CLOSE_SECONDS`."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(CLOSE_SECONDS)

    def _handlers(self) -> dict[str, Any]:
        calls = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
        }
        return {
            name: grpc.unary_unary_rpc_method_handler(
                _checked(call, MESSAGES[f"{name}Response"]),
                request_deserializer=MESSAGES[f"{name}Request"].FromString,
                response_serializer=MESSAGES[f"{name}Response"].SerializeToString,
            )
            for name, call in calls.items()
        }

    async def _server_live(self, _request: Any, _context: Any) -> dict[str, Any]:
        return {"live": True}

    async def _server_ready(self, _request: Any, context: Any) -> dict[str, Any]:
        status, _, _ = await self._ask("GET", "/v2/health/ready", context)
        return {"ready": status == 200}

    async def _server_metadata(self, _request: Any, context: Any) -> dict[str, Any]:
        value = await self._json("/v2", context)
        return {**value, "extensions": []}

    async def _model_ready(self, request: Any, context: Any) -> dict[str, Any]:
        status, body, _ = await self._ask("GET", f"{_path(request.name, request.version)}/ready", context)
        if status not in {200, 404}:
            await _refuse(context, status, body)
        return {"ready": status == 200}

    async def _model_metadata(self, request: Any, context: Any) -> dict[str, Any]:
        value = await self._json(_path(request.name, request.version), context)
        tensors = {
            which: [{key: tensor[key] for key in ("name", "datatype", "shape")} for tensor in value[which]]
            for which in ("inputs", "outputs")
        }
        return {**{key: value[key] for key in ("name", "versions", "platform")}, **tensors}

    async def _infer(self, request: Any, context: Any) -> dict[str, Any]:
        head, binary = _request_of(request)
        headers = {LENGTH: str(len(head)), "content-type": "application/octet-stream"}
        path = f"{_path(request.model_name, request.model_version)}/infer"
        status, body, answered = await self._ask("POST", path, context, head + binary, headers)
        if status != 200:
            await _refuse(context, status, body)
        cut = int(answered[LENGTH])
        value = msgspec.json.decode(body[:cut])
        outputs = [{key: each[key] for key in ("name", "datatype", "shape")} for each in value["outputs"]]
        wanted = {key: value[key] for key in ("model_name", "model_version", "id") if key in value}
        return {**wanted, "outputs": outputs, "raw_output_contents": [body[cut:]]}

    async def _json(self, path: str, context: Any) -> dict[str, Any]:
        status, body, _ = await self._ask("GET", path, context)
        if status != 200:
            await _refuse(context, status, body)
        value: dict[str, Any] = msgspec.json.decode(body)
        return value

    async def _ask(
        self, method: str, path: str, context: Any, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """What the application answers to a request: status, body and headers."""
        given = {**(headers or {}), "content-length": str(len(body))}
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                given[key] = str(value)
        kind, _, rest = context.peer().partition(":")
        host, _, port = rest.rpartition(":")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "2",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in given.items()],
            "client": (host.strip("[]") if kind.startswith("ipv") else rest, int(port) if port.isdecimal() else 0),
            "server": None,
        }
        if self._settings.client_ca is not None:
            shown = context.auth_context()
            names = *shown.get("x509_common_name", ()), *shown.get("x509_subject_alternative_name", ())
            scope["gridscore.names"] = frozenset(name.decode(errors="replace") for name in names)
        sent: list[Message] = []
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            await asyncio.get_running_loop().create_future()  # a call that is cancelled cancels us
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        head = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in sent[0]["headers"]}
        return sent[0]["status"], b"".join(each.get("body", b"") for each in sent[1:]), head


def _credentials(settings: ServeSettings) -> Any:
    if settings.certificate is None or settings.private_key is None:
        return None
    pair = Path(settings.private_key).read_bytes(), Path(settings.certificate).read_bytes()
    authorities = None if settings.client_ca is None else Path(settings.client_ca).read_bytes()
    return grpc.ssl_server_credentials([pair], authorities, require_client_auth=authorities is not None)


def _checked(
    call: Callable[[Any, Any], Awaitable[dict[str, Any]]], response: Any
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(request: Any, context: Any) -> Any:
        return response(**await call(request, context))

    return answer


async def _refuse(context: Any, status: int, body: bytes) -> None:
    """End a call with the reason that the application gives."""
    try:
        text = msgspec.json.decode(body, type=dict[str, Any]).get("error", "")
    except msgspec.DecodeError:
        text = ""
    await context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), str(text))


def _path(name: str, version: str) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _request_of(request: Any) -> tuple[bytes, bytes]:
    """A call's tensors as the protocol has them by REST: JSON, and binary data behind it."""
    raw = list(request.raw_input_contents)
    tensors = []
    for tensor in request.inputs:
        value: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if raw:
            value["parameters"] = {"binary_data_size": len(raw[0])}
        elif tensor.datatype in _CONTENTS:
            numbers = getattr(tensor.contents, _CONTENTS[tensor.datatype])
            value["data"] = [None if math.isnan(number) else number for number in numbers]
        tensors.append(value)
    head: dict[str, Any] = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    if request.id:
        head["id"] = request.id
    if request.outputs:
        head["outputs"] = [{"name": each.name, "parameters": {"binary_data": True}} for each in request.outputs]
    return msgspec.json.encode(head), b"".join(raw)


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="open_inference.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if name in _ONE_OF:
            message.oneof_decl.add(name=_ONE_OF[name])
        for number, text in enumerate(fields.split(), 1):
            field, _, kind = text.rstrip("*@").partition(":")
            made = message.field.add(name=field, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
            if text.endswith(("*", "@")):
                made.label = FieldDescriptorProto.LABEL_REPEATED
            if name in _ONE_OF:
                made.oneof_index = 0
            if text.endswith("@"):
                entry = f"{field.title()}Entry"
                nested = message.nested_type.add(name=entry)
                nested.options.map_entry = True
                for place, (part, of) in enumerate((("key", "string"), ("value", kind)), 1):
                    _set_type(nested.field.add(name=part, number=place, label=FieldDescriptorProto.LABEL_OPTIONAL), of)
                _set_type(made, f"{name}.{entry}")
            else:
                _set_type(made, kind or "string")
    return file


def _set_type(field: FieldDescriptorProto, kind: str) -> None:
    if kind[0].isupper():
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")


_pool = DescriptorPool()
_pool.Add(_file())

# Classes of the messages, by name.
MESSAGES: dict[str, Any] = {
    name: GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
}
