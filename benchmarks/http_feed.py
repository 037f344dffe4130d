"""Posts events to an HTTP source, in its own process, with the arguments `HOST:PORT PATH COUNT`."""

from __future__ import annotations

import http.client
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from gridscore.proving.bench import card

CONNECTIONS = 4
BODY_EVENTS = 2_000


def main() -> None:
    """Post everything as bodies of lines, over some connections at once; made beforehand, so that posting is cheap."""
    address, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    rest, bodies = card.events(count), []
    while entries := list(islice(rest, BODY_EVENTS)):
        bodies.append(b"\n".join(text for _, text in entries))

    def post(mine: list[bytes]) -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        for body in mine:
            connection.request("POST", path, body, {"Content-Type": "application/x-ndjson"})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != http.client.ACCEPTED:
                raise SystemExit(f"{answer.status}: {said[:500]!r}")
        connection.close()

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(post, (bodies[i::CONNECTIONS] for i in range(CONNECTIONS))))


if __name__ == "__main__":
    main()
