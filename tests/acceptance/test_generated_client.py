"""A client that `openapi-python-client` generates from what a server says of itself: it works, types and all."""

import asyncio
import importlib
import json
import sys
from pathlib import Path

import pytest
from served_calls import TOKEN, served
from servers import not_here

from gridscore.testing import StubCluster

UV = Path(sys.executable).with_name("uv")
# A tool of its own: it wants another typer than ours.
GENERATOR = "openapi-python-client==0.29.1"


async def generated(described, folder):
    """The folder of a client."""
    (folder / "openapi.json").write_text(json.dumps(described))
    (folder / "config.yaml").write_text("post_hooks: []\n")
    words = [UV, "tool", "run", "--python", sys.executable, GENERATOR, "generate", "--path", "openapi.json"]
    words += ["--config", "config.yaml", "--meta", "none", "--output-path", "gridscore_api", "--fail-on-warning"]
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said = (await process.communicate())[0].decode()
    if process.returncode and "No solution found" in said:
        not_here(f"the generator cannot be had: {said}")
    assert process.returncode == 0, said


async def test_a_generated_client_works(tmp_path, monkeypatch):
    async with StubCluster(partitions=8) as cluster:
        gridscore = await cluster.client()
        async with served(gridscore, await cluster.connect("server")) as server:
            await generated(server.app.describe(), tmp_path)
            monkeypatch.syspath_prepend(tmp_path)
            made = importlib.import_module("gridscore_api")
            models = importlib.import_module("gridscore_api.models")

            def verb(name, about="control"):
                return importlib.import_module(f"gridscore_api.api.{about}.{name}")

            async with made.AuthenticatedClient(base_url=server.http.address, token=TOKEN, timeout=60) as client:
                job = await verb("get_job").asyncio(client=client, job="plain")
                assert (job["name"], job["job"]["events"]) == ("plain", "events.plain")
                body = models.Promotion(version=1, points_at=2, why="generated")
                moved = await verb("promote_model").asyncio(client=client, model="plain", body=body)
                assert (moved["version"], await gridscore.models.aliases("plain")) == (1, {"champion": 1})
                body = models.Promotion(version=2, points_at=2)
                refused = await verb("promote_model").asyncio_detailed(client=client, model="plain", body=body)
                assert refused.status_code == 409
                assert isinstance(refused.parsed, models.Problem)
                assert "points at version 1 by now, not 2" in refused.parsed.detail
                event = models.Event.from_dict({"amount": 12.5})
                async with asyncio.timeout(60):  # a version that was promoted scores within a second
                    while True:
                        scored = await verb("score", "scores").asyncio_detailed(client=client, job="plain", body=event)
                        if scored.status_code == 200 and scored.parsed["version"] == 1:
                            break
                        await asyncio.sleep(0.05)
                with pytest.raises(TypeError):
                    models.Promotion(versoin=1)
