"""A container engine for tests: podman, with stand-ins under the names of the public images, as no registry is needed.

A stand-in is a small Debian with an interpreter of this machine, or with the Java runtime and the jars of an embedded
member. What the Compose files and the Dockerfile say stays as users run it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gridscore.grid.artifacts import DEFAULT_VERSION, cache_folder, java_executable, member_jars

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
    def served(self) -> Iterator[str]:
        """Docker's API; its address."""
        address = f"unix://{self.folder}/api.sock"
        command = ["podman", "system", "service", "--time=0", address]
        with subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL) as service:
            yield address
            service.terminate()

    def podman(self, *words: str, code: int | None = 0, seconds: float = 120) -> str:
        return self.run("podman", *words, code=code, seconds=seconds)

    def prepare(self, image: str) -> None:
        """Make the stand-ins that are not there yet, and our image."""
        python = base_image()
        if not all(self._has(name) for name in (python, HAZELCAST)):
            self._make_stand_ins(python)
        mine = [f"PIP_INDEX_URL={os.environ['PIP_INDEX_URL']}"] if "PIP_INDEX_URL" in os.environ else []
        # The certificates that this machine trusts, for a package index of its own.
        certificates = ["-v /etc/ssl/certs:/etc/ssl/certs:ro", "--env PIP_CERT=/etc/ssl/certs/ca-certificates.crt"]
        arguments = " ".join(["--layers", *certificates, *(f"--build-arg {each}" for each in mine)])
        self.run("make", "image", "ENGINE=podman", f"IMAGE={image}", f"ARGS={arguments}", seconds=280)

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

    def _import(self, root: Path, name: str, *changes: str) -> None:
        archive = self.folder / "image.tar"
        self.run("tar", "-C", str(root), "-cf", str(archive), ".")
        self.podman("import", "--quiet", *(word for each in changes for word in ("--change", each)), str(archive), name)
        archive.unlink()


def base_image() -> str:
    """The image that ours begins with."""
    first = next(line for line in (ROOT / "compose" / "Dockerfile").read_text().splitlines() if "ARG PYTHON=" in line)
    return first.partition("=")[2]
