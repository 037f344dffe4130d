"""A real Kafka broker on this machine: one node in KRaft mode, a child process, without Docker or an installed Java.

For tests and benchmarks of what speaks Kafka: `with Broker.start(folder) as broker:`. It can be killed, and restarted.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from gridscore.errors import MemberError
from gridscore.grid.artifacts import cache_folder, java_executable
from gridscore.grid.ports import HOST, choose_ports
from gridscore.testing.guarded import GuardedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VERSION = "4.1.0"

_ASK_SECONDS = 1.0

_JVM_OPTIONS = [
    # Those of Kafka's own start script.
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Djava.net.preferIPv4Stack=true",
]

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=CONTROLLER://{host}:{controller},{listeners}
advertised.listeners={listeners}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# For those who want to see soon what becomes of a consumer that has died.
group.min.session.timeout.ms=500
# A deleted topic's files go soon, not after a minute.
log.segment.delete.delay.ms=1000
"""

_USERS = """\
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required {users};
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
# Those who come by the plain address, the broker among them.
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true
"""

_CERTIFICATE = """\
listener.name.ssl.ssl.keystore.type=PEM
listener.name.ssl.ssl.keystore.location={certificate}
"""


class Broker(GuardedServer):
    """A broker, running as a child process of this one. A context manager: leaving it stops it.

    It also ends when this process ends, whatever way. Make one with :meth:`start`. Topics must be created before they
    are used.

    Attributes:
        address: Where it listens, `host:port`; who comes here may do everything.
        sasl_address: Where it listens to its users, by SASL PLAIN without TLS; they may do what no ACL denies. Empty if
            it has none.
        tls_address: Where it listens by TLS; empty if it has no certificate.
        log_file: What it prints.
    """

    START_SECONDS = 120.0

    def __init__(
        self, folder: Path, command: list[str], *, heap: str, users: Mapping[str, str], certificate: Path | None
    ) -> None:
        super().__init__("Kafka broker", folder / "broker.log")
        port, controller, sasl_port, tls_port = choose_ports(4, 0)
        self.address = f"{HOST}:{port}"
        self.sasl_address = f"{HOST}:{sasl_port}" if users else ""
        self.tls_address = f"{HOST}:{tls_port}" if certificate else ""
        addresses = {"PLAINTEXT": self.address, "SASL_PLAINTEXT": self.sasl_address, "SSL": self.tls_address}
        text = _PROPERTIES.format(
            host=HOST,
            controller=controller,
            data=folder / "data",
            listeners=",".join(f"{name}://{address}" for name, address in addresses.items() if address),
        )
        if users:
            text += _USERS.format(users=" ".join(f'user_{name}="{password}"' for name, password in users.items()))
        if certificate:
            text += _CERTIFICATE.format(certificate=certificate)
        self._settings = folder / "server.properties"
        self._settings.write_text(text, encoding="utf-8")
        self._java = command
        self._command = [*command, f"-Xms{heap}", f"-Xmx{heap}", "kafka.Kafka", str(self._settings)]

    @classmethod
    def start(
        cls,
        folder: Path,  # for its data, its settings and its log; it must exist, and is left as it is in the end
        *,
        heap: str = "1g",  # Java heap, as `512m` or `1g`
        users: Mapping[str, str] | None = None,  # passwords by name, for `sasl_address`
        # For `tls_address`: a PEM file with a private key (PKCS #8) and its chain of certificates.
        certificate: Path | None = None,
        on_progress: Callable[[str], None] | None = None,  # called with a line for people as the start goes on
    ) -> Broker:
        """Start a broker and return when it answers.

        Raises MemberError if it did not come up; the message says why.
        """
        progress = on_progress or (lambda _: None)
        java, jars = java_executable(), broker_jars(progress)
        progress(f"Starting a Kafka {VERSION} broker")
        command = [str(java), *_JVM_OPTIONS, "-cp", os.pathsep.join(map(str, jars))]
        broker = cls(folder, command, heap=heap, users=users or {}, certificate=certificate)
        broker._format()
        broker._begin()
        return broker

    def _format(self) -> None:
        """Give the data folder its identity, without which a broker does not start."""
        cluster = secrets.token_urlsafe(16)
        done = subprocess.run(
            [*self._java, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "--config", self._settings],
            capture_output=True,
            text=True,
            timeout=self.START_SECONDS,
            check=False,
        )
        if done.returncode:
            raise MemberError(f"The Kafka broker's data folder could not be made:\n{done.stdout}{done.stderr}")

    def _is_ready(self) -> bool:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0, "reconnect.backoff.max.ms": 200})
        try:
            admin.list_topics(timeout=_ASK_SECONDS)
        except KafkaException:
            return False
        return True


def broker_jars(on_progress: Callable[[str], None]) -> list[Path]:
    """The jars of a broker, which are downloaded once.

    Raises MemberError if they are not in the cache and cannot be downloaded.
    """
    folder = cache_folder() / f"kafka-{VERSION}"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            on_progress(f"Getting Kafka {VERSION} (about 90 MB, only once)")
            _download(folder)
    return sorted(folder.glob("*.jar"))


def _download(folder: Path) -> None:
    from jgo.constants import MAVEN_CENTRAL_URL
    from jgo.env import EnvironmentBuilder, LinkStrategy
    from jgo.maven import MavenContext

    # An interrupted download must not look whole the next time: the jars are gathered beside, and renamed at once.
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        maven = MavenContext(
            repo_cache=Path(temporary) / "repository", local_repos=[], remote_repos={"central": MAVEN_CENTRAL_URL}
        )
        builder = EnvironmentBuilder(maven, cache_dir=Path(temporary) / "envs", link_strategy=LinkStrategy.COPY)
        gathered = Path(temporary) / "gathered"
        gathered.mkdir()
        try:
            environment = builder.from_endpoint(f"org.apache.kafka:kafka_2.13:{VERSION}")
            for jar in Path(environment.path).rglob("*.jar"):
                jar.rename(gathered / jar.name)
        except Exception as error:  # jgo lets those of requests and the file system through
            raise MemberError(
                f"Kafka {VERSION} could not be downloaded: {str(error).strip() or type(error).__name__}",
                "It comes from Maven Central: try again, or set HTTPS_PROXY.",
            ) from error
        gathered.rename(folder)
