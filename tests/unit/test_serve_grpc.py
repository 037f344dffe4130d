"""The Open Inference Protocol by gRPC, asked by NVIDIA's client: the same answers, and the same doors, as by REST."""

import asyncio
import socket

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from serving import booster, prepared, serving
from tritonclient.grpc import service_pb2 as theirs
from tritonclient.utils import InferenceServerException

from gridscore.errors import UsageError
from gridscore.keys import Keys, Role
from gridscore.serve.grpc_server import MESSAGES
from gridscore.testing import StubCluster

ROWS = np.array([[1, 2, 3, 4], [60, np.nan, 2, 0], [80.5, 1, 0, np.nan]], np.float32)


def tensor(rows=ROWS, datatype="FP32"):
    made = triton.InferInput("features", list(rows.shape), datatype)
    made.set_data_from_numpy(rows)
    return [made]


def test_the_messages_are_those_of_the_protocol():
    for name, ours in MESSAGES.items():
        nested = getattr(theirs.ModelInferRequest, name, None) or getattr(theirs.ModelInferResponse, name, None)
        nested = nested or getattr(theirs.ModelMetadataResponse, name, None)
        others = (nested or getattr(theirs, name)).DESCRIPTOR.fields_by_name
        for field in ours.DESCRIPTOR.fields:
            other = others[field.name]
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)


async def test_a_client_of_others_gets_what_xgboost_gives():
    expected = booster().inplace_predict(ROWS)
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        async with serving(cluster, grpc=0) as server, triton.InferenceServerClient(server.grpc.address) as asked:
            assert await asked.is_server_live()
            assert await asked.is_server_ready()
            assert (await asked.get_server_metadata()).name == "gridscore"
            assert await asked.is_model_ready("cards")
            assert not await asked.is_model_ready("cards", "7")
            assert not await asked.is_model_ready("nobody")
            found = await asked.get_model_metadata("cards", as_json=True)
            assert (found["inputs"][0]["shape"], found["versions"], found["platform"]) == (
                ["-1", "4"],
                ["1"],
                "xgboost",
            )

            answer = await asked.infer("cards", tensor(), request_id="seven")
            assert answer.as_numpy("predict").tobytes() == expected.tobytes()
            response = answer.get_response()
            assert (response.id, response.model_name, response.model_version) == ("seven", "cards", "1")
            named = [triton.InferRequestedOutput("predict")]
            wide = await asked.infer("cards", tensor(ROWS.astype(np.float64), "FP64"), "1", outputs=named)
            assert wide.as_numpy("predict").tobytes() == expected.tobytes()
            alone = await asyncio.gather(*(asked.infer("cards", tensor(ROWS[n % 3 : n % 3 + 1])) for n in range(30)))
            assert [each.as_numpy("predict")[0] for each in alone] == [expected[n % 3] for n in range(30)]

            # Its numbers may be typed as well as raw.
            request = theirs.ModelInferRequest(model_name="cards")
            made = request.inputs.add(name="features", datatype="FP32", shape=[3, 4])
            made.contents.fp32_contents.extend(ROWS.reshape(-1).tolist())
            answer = await asked._client_stub.ModelInfer(request)
            assert answer.raw_output_contents[0] == expected.tobytes()


@pytest.mark.parametrize(
    ("inputs", "model", "version", "code", "text"),
    [
        (tensor(), "nobody", "", "NOT_FOUND", "nobody"),
        (tensor(), "cards", "9", "NOT_FOUND", "9"),
        (tensor(), "../../healthz", "", "NOT_FOUND", ""),
        (tensor(), "cards", "1/../2", "NOT_FOUND", ""),
        (tensor(ROWS[:, :2].copy()), "cards", "", "INVALID_ARGUMENT", "the model wants"),
        (tensor(np.zeros((2, 4), np.object_), "BYTES"), "cards", "", "INVALID_ARGUMENT", "BYTES"),
        (tensor(np.zeros((300_000, 4), np.float32)), "cards", "", "RESOURCE_EXHAUSTED", ""),
    ],
)
async def test_what_cannot_be_scored_is_refused_with_the_reason(inputs, model, version, code, text):
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        async with (
            serving(cluster, grpc=0, max_body=1 << 20) as server,
            triton.InferenceServerClient(server.grpc.address) as asked,
        ):
            with pytest.raises(InferenceServerException) as refused:
                await asked.infer(model, inputs, version)
            assert code in str(refused.value.status())
            assert text in refused.value.message()
            assert len((await asked.infer("cards", tensor())).as_numpy("predict")) == 3


async def test_keys_open_this_door_as_the_other():
    async with StubCluster(partitions=8) as cluster:
        gridscore = await prepared(cluster)
        keys = Keys(gridscore.grid)
        _, right = await keys.create([Role.SCORE], ["cards"])
        _, other = await keys.create([Role.SCORE], ["plain"])
        async with (
            serving(cluster, grpc=0, keys=True) as server,
            triton.InferenceServerClient(server.grpc.address) as asked,
        ):
            for headers, code in (({}, "UNAUTHENTICATED"), ({"authorization": f"Bearer {other}"}, "PERMISSION_DENIED")):
                with pytest.raises(InferenceServerException) as refused:
                    await asked.infer("cards", tensor(), headers=headers)
                assert code in str(refused.value.status())
            answer = await asked.infer("cards", tensor(), headers={"authorization": f"Bearer {right}"})
            assert len(answer.as_numpy("predict")) == 3


async def test_it_speaks_tls_with_the_certificate_of_the_other_door(tmp_path):
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "chain.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = {"certificate": str(tmp_path / "chain.pem"), "private_key": str(tmp_path / "key.pem")}
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        async with serving(cluster, grpc=0, **files) as server:
            trust = {"ssl": True, "root_certificates": str(tmp_path / "ca.pem")}
            async with triton.InferenceServerClient(server.grpc.address, **trust) as asked:
                assert len((await asked.infer("cards", tensor())).as_numpy("predict")) == 3
            async with grpc.aio.insecure_channel(server.grpc.address) as plain:
                with pytest.raises(grpc.aio.AioRpcError):
                    await plain.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20)


async def test_a_port_that_is_taken_is_said():
    async with StubCluster(partitions=8) as cluster:
        await prepared(cluster)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port} for gRPC"):
                async with serving(cluster, grpc=port):
                    pass
