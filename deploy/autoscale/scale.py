"""Sets the number of replicas of a Deployment, from within the cluster: `python scale.py NAME REPLICAS`."""

import json
import ssl
import sys
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

name, replicas = sys.argv[1], int(sys.argv[2])
namespace, token = ((ACCOUNT / each).read_text().strip() for each in ("namespace", "token"))
request = urllib.request.Request(
    f"https://kubernetes.default.svc/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
    json.dumps({"spec": {"replicas": replicas}}).encode(),
    {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"},
    method="PATCH",
)
trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
with urllib.request.urlopen(request, timeout=10, context=trusted) as answer:  # noqa: S310 -- the address is ours
    answer.read()
