"""An HTTP server that answers as Confluent's schema registry does.

The real registry cannot be had from a package registry. The server here is a real one, of the standard library, with
the two requests of the real API that are made: `GET /schemas/ids/{id}` and `GET /subjects/{subject}/versions/{n}`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER, PASSWORD = "alice", "secret"


@contextlib.contextmanager
def serving(answers):
    """A server with these answers by path; it knows one user, and lets strangers in unless it is told not to."""

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            user = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
            if self.server.closed_to_strangers and self.headers.get("Authorization") != f"Basic {user}":
                return self._answer(401, {"error_code": 40101})
            if self.path in answers:
                return self._answer(self.server.status, answers[self.path])
            return self._answer(404, {"error_code": 40403, "message": "Schema not found"})

        def _answer(self, status, body):
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    server.asked, server.status, server.closed_to_strangers = [], 200, False
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
