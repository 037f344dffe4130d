"""An issuer of tokens that does what it is told to: rotates its keys, lies, and fails."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from joserfc import jwk, jws

AUDIENCE = "gridscore"


class Issuer:
    """An issuer of tokens.

    Attributes:
        documents: What it answers, by path: a document, bytes, or the status of a refusal.
        asked: How often it was, by path.
    """

    def __init__(self):
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.asked[self.path] = issuer.asked.get(self.path, 0) + 1
                found = issuer.documents.get(self.path, 404)
                body = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(found if isinstance(found, int) else 200)
                if found == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self.asked, self.documents = {}, {}
        self.publish(jwk.ECKey.generate_key("P-256", {"kid": "one"}))

    def publish(self, *keys, **more):
        self.key = keys[0]
        self.documents["/keys"] = {"keys": [{**key.as_dict(private=False), **more} for key in keys]}
        self.documents["/.well-known/openid-configuration"] = {
            "issuer": self.address,
            "jwks_uri": f"{self.address}/keys",
        }

    def claims(self, **changed):
        now = int(time.time())
        claims = {"iss": self.address, "aud": AUDIENCE, "sub": "anna", "exp": now + 600, "scope": "openid score-all"}
        return {name: value for name, value in {**claims, **changed}.items() if value is not None}

    def token(self, key=None, alg="ES256", head=None, **changed):
        key = key or self.key
        header = {"alg": alg, "kid": key.kid, **(head or {})}
        registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
        return jws.serialize_compact(header, json.dumps(self.claims(**changed)), key, registry=registry)

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
