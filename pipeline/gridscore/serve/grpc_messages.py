"""The messages of the Open Inference Protocol by gRPC, as its specification numbers their fields.

They are made here, in a pool of their own: the classes that protoc would write clash with those of a client in the same
process, and are bound to one release of protobuf.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE = "inference.GRPCInferenceService"
_PACKAGE = "inference"
_TENSOR = "name datatype shape:int64* parameters:InferParameter@ contents:InferTensorContents"
_MODEL = "model_name model_version id parameters:InferParameter@"

# Fields in the order of their numbers: `name`, `name:type`, `*` for repeated, `@` for a map from strings.
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

MESSAGES: dict[str, Any] = {
    name: GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
}
"""Classes of the messages, by name."""
