"""The configuration of an embedded member: `hazelcast.yaml`, ours or the user's, adjusted to this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gridscore.errors import MemberError

if TYPE_CHECKING:
    from collections.abc import Sequence

# The majority of two is both: protection would stop the cluster at the first loss.
_PROTECTED_FROM = 3


def template_file() -> Path:
    """Our `hazelcast.yaml`: inside the package when installed, at the top of the repository in a checkout.

    Raises MemberError if it is in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    for path in (package / "hazelcast.yaml", package.parents[1] / "hazelcast.yaml"):
        if path.is_file():
            return path
    raise MemberError("hazelcast.yaml is missing from this installation.", "Install gridscore again.")


def load_template(path: Path | None = None) -> dict[str, Any]:
    """The section `hazelcast:` of a member configuration in YAML; default: ours.

    Raises MemberError if the file cannot be read, or is not a member configuration in YAML.
    """
    file = path or template_file()
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise MemberError(f"The configuration {file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MemberError(
            f"The configuration {file} is not valid YAML: {' '.join(str(error).split())}",
            "An embedded member takes its configuration in YAML only, not in XML.",
        ) from None
    if not isinstance(document, dict) or not isinstance(document.get("hazelcast"), dict):
        raise MemberError(f"The configuration {file} has no section `hazelcast:` at its top.")
    return dict(document["hazelcast"])


def member_config(
    template: dict[str, Any],  # the section `hazelcast:`; it is not changed
    *,
    ports: list[int],
    index: int,
    cluster_name: str,
    instance_name: str,  # what the member calls itself in its log
    announced: Sequence[int] = (),  # ports that the members announce; default: their own
    outbound: Sequence[range] = (),  # ports from which each member connects to others; default: any
) -> str:
    """The YAML of one member of a cluster on this machine."""
    announced = announced or ports
    config = dict(template)
    config["cluster-name"] = cluster_name
    config["instance-name"] = instance_name
    network = dict(config.get("network") or {})
    network["port"] = {"port": ports[index], "auto-increment": False}
    network["reuse-address"] = True
    network["public-address"] = f"127.0.0.1:{announced[index]}"
    if outbound:
        network["outbound-ports"] = [f"{outbound[index][0]}-{outbound[index][-1]}"]
    network["interfaces"] = {"enabled": True, "interfaces": ["127.0.0.1"]}
    network["join"] = {
        "auto-detection": {"enabled": False},
        "multicast": {"enabled": False},
        "tcp-ip": {"enabled": True, "member-list": [f"127.0.0.1:{port}" for port in announced]},
    }
    config["network"] = network
    # Left out, not disabled: beside `recently-active-split-brain-protection`, Hazelcast ignores `enabled: false`.
    protections = config.pop("split-brain-protection", None)
    if protections and len(ports) >= _PROTECTED_FROM:
        majority = {"minimum-cluster-size": len(ports) // 2 + 1}
        config["split-brain-protection"] = {name: (each or {}) | majority for name, each in protections.items()}
    return str(yaml.safe_dump({"hazelcast": config}, sort_keys=False))


def template_cluster_name(template: dict[str, Any]) -> str:
    """The cluster name that the configuration gives, or Hazelcast's own default."""
    return str(template.get("cluster-name") or "dev")
