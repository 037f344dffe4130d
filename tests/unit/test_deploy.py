"""The manifests for Kubernetes: rendered as a user does it, valid, and with what keeps a worker and a node safe."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from servers import not_here
from typer.testing import CliRunner

from gridscore.cli import _commands

kubernetes_validate = pytest.importorskip("kubernetes_validate", exc_type=ImportError)

DEPLOY = Path(__file__).parents[2] / "deploy"
PARTS = ["base", "source", "sink", "autoscale"]
VERSIONS = ["1.28", "1.34"]


def rendered(folder):
    """The objects of a folder, by kind and name: what `kubectl kustomize` gives, but for the hashes in names."""
    rules = yaml.safe_load((folder / "kustomization.yaml").read_text())
    objects = {}
    for each in rules["resources"]:
        if (folder / each).is_dir():
            objects |= rendered(folder / each)
        else:
            found = yaml.safe_load_all((folder / each).read_text())
            objects |= {(item["kind"], item["metadata"]["name"]): item for item in found}
    for made in rules.get("configMapGenerator", []):
        data = dict(literal.split("=", 1) for literal in made.get("literals", []))
        data |= {file: (folder / file).read_text() for file in made.get("files", [])}
        meta = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}}
        objects["ConfigMap", made["name"]] = meta | {"data": data}
    return objects


@pytest.fixture(scope="module", params=PARTS)
def objects(request):
    return rendered(DEPLOY / request.param)


@pytest.mark.parametrize("part", PARTS)
def test_kubectl_renders_the_same_objects(part):
    kubectl = shutil.which("kubectl") or not_here("no kubectl of 1.21 or later: https://kubernetes.io/docs/tasks/tools")
    done = subprocess.run([kubectl, "kustomize", DEPLOY / part], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    objects = [(each["kind"], each["metadata"]["name"]) for each in yaml.safe_load_all(done.stdout)]
    plain = {(kind, name[:-11] if kind == "ConfigMap" else name) for kind, name in objects}  # without the hash
    assert plain == set(rendered(DEPLOY / part))
    assert "gridscore:latest" in done.stdout


def deployments(objects):
    return [each for (kind, _), each in objects.items() if kind == "Deployment"]


def containers(objects):
    return [container for each in deployments(objects) for container in each["spec"]["template"]["spec"]["containers"]]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid(objects, version):
    assert objects
    for each in objects.values():
        kubernetes_validate.validate(each, version, strict=True)


def test_what_an_object_names_is_there(objects):
    maps = {name for kind, name in objects if kind == "ConfigMap"}
    for each in deployments(objects):
        pod = each["spec"]["template"]
        assert each["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for container in pod["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            assert {
                source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source
            } <= maps
        named = {volume["configMap"]["name"] for volume in volumes.values() if "configMap" in volume}
        assert named <= maps | {"gridscore-job"}  # which the user makes of the job file
        if account := pod["spec"].get("serviceAccountName"):
            assert ("ServiceAccount", account) in objects
    for (kind, _), each in objects.items():
        if kind == "PodDisruptionBudget":
            labels = each["spec"]["selector"]["matchLabels"].items()
            assert any(labels <= to["spec"]["template"]["metadata"]["labels"].items() for to in deployments(objects))


def test_no_container_may_do_more_than_it_must(objects):
    for each in containers(objects):
        security = each["securityContext"]
        assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert each["resources"]["limits"]["memory"]
        assert each["image"] == "gridscore"  # which kustomize makes the full name of
    for each in deployments(objects):
        assert each["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_workers_are_given_time_to_give_their_leases_back(objects):
    for each in deployments(objects):
        pod = each["spec"]["template"]["spec"]
        if each["metadata"]["name"] != "gridscore-autoscale":
            assert pod["terminationGracePeriodSeconds"] >= 30
            (container,) = pod["containers"]
            probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
            assert len({tuple(probe["exec"]["command"]) for probe in probes}) == 1


def test_every_command_is_one_that_gridscore_takes(objects):
    for each in containers(objects):
        words = [word for word in each["args"] if not word.startswith("/")]
        options = [word for word in words if word.startswith("--")]
        command = words[: 2 if words[0] in ("source", "sink") else 1]
        help_text = CliRunner().invoke(_commands(), [*command, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in help_text for option in ["Usage", *options]), help_text


def test_the_autoscaler_may_scale_the_workers_and_nothing_else(objects):
    roles = [each for (kind, _), each in objects.items() if kind == "Role"]
    for role in roles:
        assert role["rules"] == [
            {
                "apiGroups": ["apps"],
                "resources": ["deployments/scale"],
                "resourceNames": ["gridscore-worker"],
                "verbs": ["patch"],
            }
        ]
        (scaler,) = [each for each in containers(objects) if each["name"] == "autoscale"]
        command = scaler["args"][scaler["args"].index("--exec") + 1].split()
        assert command[:3] == ["python", "/etc/scale/scale.py", "gridscore-worker"]
        (script,) = [each for (kind, _), each in objects.items() if kind == "ConfigMap" and "scale.py" in each["data"]]
        compile(script["data"]["scale.py"], "scale.py", "exec")
