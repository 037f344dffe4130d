"""Tokens of an issuer, and certificates of clients: who may come with them, and that no other token passes for one.

The issuer is ours, as it has to rotate its keys, to lie and to fail when it is told to. What signs its tokens is
another library than the one that reads them.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import jwt
import pytest
import trustme
from issuer import AUDIENCE, Issuer
from joserfc import jwk
from pydantic import ValidationError
from serving import client, prepared, serving

from gridscore.errors import SettingsError, UsageError
from gridscore.job.plugs.http import PostSettings
from gridscore.sources.http import gate, tls, tokens
from gridscore.testing import StubCluster

WITH_CERTIFICATES = {"certificate": "x", "private_key": "x", "client_ca": "ca.pem", "client_grant": {"till": "score"}}
GRANTS = {"score-all": "score", "reader": "read", "cards": "score,read:plain,cards"}


@pytest.fixture
def issuer():
    made = Issuer()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(gate, "WAIT_SECONDS", 0.0)


@asynccontextmanager
async def guarded(issuer, **settings):
    """A server that takes tokens of the issuer, and who asks it."""
    options = {"oidc_issuer": issuer.address, "oidc_audience": [AUDIENCE], "oidc_grant": GRANTS, **settings}
    async with StubCluster(partitions=4) as cluster:
        await prepared(cluster)
        async with serving(cluster, **options) as server, client(server) as http:
            yield http


async def status(http, token, path="/v2/models/cards"):
    return (await http.get(path, headers={"Authorization": f"Bearer {token}"})).status_code


def encoded(value):
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=")


async def test_the_token_of_the_settings_opens_whatever_it_looks_like(issuer):
    token = f"ey{uuid.uuid4().hex}"
    async with guarded(issuer, token=token) as http:
        assert await status(http, token, "/jobs") == 200
        assert await status(http, f"{token[:-1]}x", "/jobs") == 401
        assert await status(http, issuer.token(scope="reader"), "/jobs") == 200


async def test_a_token_ends_with_its_time_for_who_has_come_with_it_too(issuer, monkeypatch):
    monkeypatch.setattr(tokens, "LEEWAY_SECONDS", 0)
    settings = PostSettings(oidc_issuer=issuer.address, oidc_audience=[AUDIENCE], oidc_grant=GRANTS)
    async with StubCluster(partitions=4) as cluster:
        guard = gate.Guard(await cluster.connect("guard"), settings)
        short, long = [
            await guard.caller({}, f"Bearer {issuer.token(exp=at)}") for at in (int(time.time()) + 3, 10**12)
        ]
        assert await guard.is_good(short)
        async with asyncio.timeout(30):
            while await guard.is_good(short):
                await asyncio.sleep(0.1)
        assert await guard.is_good(long)
        await guard.close()


async def test_a_token_opens_what_its_claim_is_granted(issuer):
    async with guarded(issuer) as http:
        assert await status(http, issuer.token()) == 200
        assert await status(http, issuer.token(), "/jobs") == 403
        assert await status(http, issuer.token(scope="reader"), "/jobs") == 200
        assert await status(http, issuer.token(scope="reader")) == 403
        assert await status(http, issuer.token(scope=["x", "cards"])) == 200
        assert await status(http, issuer.token(scope="cards"), "/v2/models/other") == 403
        assert await status(http, issuer.token(scope="cards"), "/jobs") == 403  # these are of all
        for scope in ("x", "", None, 7, {"score-all": 1}, [["score-all"]], "Score-all"):
            assert await status(http, issuer.token(scope=scope)) == 403
        assert await status(http, issuer.token(aud=["x", AUDIENCE])) == 200
        assert issuer.asked == {"/.well-known/openid-configuration": 1, "/keys": 1}

        # A proxy that has asked a person who it is shows the token to the dashboard.
        shown = {"Authorization": f"Bearer {issuer.token(scope='reader', sub='ann<b>a')}"}
        page = await http.get("/", headers=shown)
        assert (page.status_code, "oidc:ann&lt;b&gt;a" in page.text) == (200, True)
        assert (await http.get("/", headers={"Authorization": f"Bearer {issuer.token()}"})).status_code == 403
        assert (await http.get("/", headers={"Authorization": "Bearer x"})).status_code == 401


@pytest.mark.parametrize(
    ("claim", "claims", "expected"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["score-all"]}}, 200),
        ("https://a.b/roles", {"https://a.b/roles": ["score-all"]}, 200),
        ("sub", {"sub": "score-all"}, 200),
        ("name", {"name": "I am score-all now"}, 403),  # a space in what people call themselves means nothing
        ("a.b.c", {"a": {"b": "c"}}, 403),
    ],
)
async def test_the_claim_may_be_another(issuer, claim, claims, expected):
    async with guarded(issuer, oidc_claim=claim) as http:
        assert await status(http, issuer.token(**claims)) == expected


@pytest.mark.filterwarnings("ignore:Key size should be")
async def test_no_other_token_passes_for_one(issuer):
    rsa, other = jwk.RSAKey.generate_key(2048, {"kid": "rsa"}), jwk.ECKey.generate_key("P-256", {"kid": "one"})
    secret = jwk.OctKey.generate_key(256, {"kid": "secret"})
    weak = jwk.RSAKey.generate_key(1024, {"kid": "weak"})
    sealing = jwk.ECKey.generate_key("P-256", {"kid": "sealing"})
    issuer.publish(issuer.key, rsa, weak)
    issuer.documents["/keys"]["keys"] += [
        secret.as_dict(private=True),
        {**sealing.as_dict(private=False), "use": "enc"},
        {"kid": "odd", "kty": 7},
        {"kid": ["x"], "kty": "EC"},
        {"kid": "worse", "kty": "RSA", "alg": []},
    ]
    issuer.documents["/evil"] = {"keys": [other.as_dict(private=False)]}
    now = int(time.time())
    good = issuer.token()
    head, body, signature = good.split(".")

    def by_public_key(form):
        start = encoded({"alg": "HS256", "kid": "rsa"}) + b"." + encoded(issuer.claims())
        return (start + b"." + encoded(hmac.digest(form, start, hashlib.sha256))).decode()

    unsigned = encoded({"alg": "none", "kid": "one"}).decode()
    wrong = {
        "alg none": f"{unsigned}.{body}.",
        "alg none, signed": f"{unsigned}.{body}.{signature}",
        "alg None": f"{encoded({'alg': 'None', 'kid': 'one'}).decode()}.{body}.",
        "HS256 with the public key": by_public_key(rsa.as_pem(private=False)),
        "HS256 with the published key": by_public_key(json.dumps(rsa.as_dict(private=False)).encode()),
        "HS256 with a published secret": issuer.token(secret, "HS256"),
        "a key too short": issuer.token(weak, "RS256"),
        "a key for sealing": issuer.token(sealing),
        "another algorithm than the key's": issuer.token(rsa, "PS256"),
        "another key of the same name": issuer.token(other),
        "a key in the head": issuer.token(other, head={"jwk": other.as_dict(private=False)}),
        "keys elsewhere": issuer.token(other, head={"jku": f"{issuer.address}/evil"}),
        "critical": jwt.encode(
            issuer.claims(), issuer.key.as_pem(private=True), "ES256", {"kid": "one", "crit": ["x"], "x": 1}
        ),
        "no exp": issuer.token(exp=None),
        "expired": issuer.token(exp=now - tokens.LEEWAY_SECONDS - 1),
        "endless": issuer.token(exp=float("inf")),
        "not yet": issuer.token(nbf=now + tokens.LEEWAY_SECONDS + 60),
        "of tomorrow": issuer.token(iat=now + 86_400),
        "another issuer": issuer.token(iss="https://login.example.com"),
        "no issuer": issuer.token(iss=None),
        "issuer with a slash": issuer.token(iss=issuer.address + "/"),
        "another audience": issuer.token(aud="others"),
        "no audience": issuer.token(aud=None),
        "a part of the audience": issuer.token(aud="grid"),
        "no subject": issuer.token(sub=None),
        "other claims": f"{head}.{encoded(issuer.claims(scope='cards')).decode()}.{signature}",
        "cut": good[:-4],
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "five parts": f"{good}.x.y",
        "a list": f"{encoded([1]).decode()}.{body}.{signature}",
        "deep": f"{encoded(b'[' * 9_000).decode()}.{body}.{signature}",
        "large": issuer.token(x="x" * tokens.MAX_TOKEN),
    }
    for name in ("../one", "one\0", "one' OR '1'='1", "/etc/passwd", "", "x" * 5_000, 7, None, ["one"], {"one": 1}):
        start = encoded({"alg": "ES256", "kid": name}).decode()
        wrong[f"kid {name!r:.20}"] = f"{start}.{body}.{signature}"
    async with guarded(issuer) as http:
        assert await status(http, good) == 200
        assert await status(http, issuer.token(rsa, "RS256")) == 200
        assert await status(http, issuer.token(exp=now - tokens.LEEWAY_SECONDS + 20)) == 200  # clocks differ
        assert {name: code for name, token in wrong.items() if (code := await status(http, token)) != 401} == {}
        assert "/evil" not in issuer.asked
        assert issuer.asked["/keys"] == 1  # names that nobody has do not make us ask again


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
async def test_keys_rotate_and_an_issuer_that_is_down_closes_no_door_that_is_open(issuer, monkeypatch, caplog):
    old = issuer.key
    async with guarded(issuer) as http:
        issuer.documents["/keys"] = 500
        assert await status(http, issuer.token()) == 503
        assert await status(http, issuer.token(), "/") == 503
        assert "answers 500" in caplog.text
        issuer.publish(old)
        assert await status(http, issuer.token()) == 503  # is not asked again at once
        monkeypatch.setattr(tokens, "FAILED_SECONDS", 0.0)
        assert await status(http, issuer.token()) == 200

        new = jwk.OKPKey.generate_key("Ed25519", {"kid": "two", "alg": "EdDSA"})
        issuer.publish(new, old)
        asked = issuer.asked["/keys"]
        assert await status(http, issuer.token(new, "EdDSA")) == 401
        assert issuer.asked["/keys"] == asked  # it was asked less than a minute ago
        monkeypatch.setattr(tokens, "UNKNOWN_SECONDS", 0.0)
        assert await status(http, issuer.token(new, "EdDSA")) == 200
        assert await status(http, issuer.token(old)) == 200

        issuer.documents["/keys"] = 500
        third = jwk.ECKey.generate_key("P-256", {"kid": "three"})
        monkeypatch.setattr(tokens, "FRESH_SECONDS", 0.0)
        assert await status(http, issuer.token(third)) == 503
        assert await status(http, issuer.token(new, "EdDSA")) == 200
        monkeypatch.setattr(tokens, "KEPT_SECONDS", 0.0)  # what is not seen for a day may have been withdrawn
        assert await status(http, issuer.token(new, "EdDSA")) == 503

        monkeypatch.setattr(tokens, "KEPT_SECONDS", 86_400.0)
        issuer.publish(new)
        async with asyncio.timeout(20):
            while await status(http, issuer.token(old)) != 401:  # known until the keys are fetched, beside requests
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "document", "why"),
    [
        ("/.well-known/openid-configuration", {"issuer": "https://x.example.com", "jwks_uri": "x"}, "it calls itself"),
        ("/.well-known/openid-configuration", {"jwks_uri": "x"}, "missing required field"),
        ("/keys", b'{"keys": [', "truncated"),
        ("/keys", {"keys": 7}, "Expected `array`"),
        ("/keys", b"[" * 100_000, ""),
        ("/keys", b" " * (tokens.MAX_DOCUMENT + 1), "has more than 262,144 bytes"),
        ("/keys", 302, "answers 302"),
        ("/keys", {"keys": []}, None),
    ],
)
async def test_what_an_issuer_says_is_bounded_and_checked(issuer, caplog, path, document, why):
    issuer.documents[path] = document
    async with guarded(issuer) as http:
        assert await status(http, issuer.token()) == (401 if why is None else 503)
        assert why is None or f"The keys of {issuer.address} cannot be fetched: " in caplog.text
        assert (why or "") in caplog.text
        assert "/elsewhere" not in issuer.asked
        assert (await http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "where", ["http://login.example.com/keys", "ftp://127.0.0.1/keys", "file:///etc/passwd", "//x"]
)
async def test_keys_are_fetched_by_tls_only_but_on_this_machine(issuer, caplog, where):
    issuer.documents["/.well-known/openid-configuration"]["jwks_uri"] = where
    async with guarded(issuer) as http:
        assert await status(http, issuer.token()) == 503
        assert "cannot be fetched" in caplog.text


async def test_no_proxy_of_the_environment_answers_for_an_issuer_on_this_machine(issuer, monkeypatch):
    async with guarded(issuer) as http:
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("http_proxy", issuer.address)  # would be asked with whole addresses in the place of paths
        assert await status(http, issuer.token()) == 200


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"oidc_issuer": "http://login.example.com"}, "must begin with https://"),
        ({"oidc_issuer": "http://127.0.0.1.example.com"}, "must begin with https://"),
        ({"oidc_issuer": "http://localhost@example.com"}, "must begin with https://"),
        ({"oidc_issuer": "https://me@example.com"}, "must begin with https://"),
        ({"oidc_issuer": "login"}, "must begin with https://"),
        ({"oidc_audience": []}, "belong together"),
        ({"oidc_grant": {}}, "belong together"),
        ({"oidc_issuer": None}, "belong together"),
        ({"client_grant": {"till": "score"}}, "needs `client_ca`"),
        ({"client_ca": "ca.pem"}, "needs `certificate`"),
        ({**WITH_CERTIFICATES, "allow_origin": ["https://x.example.com", "*"]}, "must name the pages"),
    ],
)
def test_settings_that_would_open_more_than_is_meant_are_refused(changed, why):
    good = {"oidc_issuer": "https://login.example.com/x", "oidc_audience": ["x"], "oidc_grant": {"x": "score"}}
    PostSettings(**good, **WITH_CERTIFICATES, allow_origin=["https://x.example.com"])
    with pytest.raises(ValidationError, match=why):
        PostSettings(**{**good, **changed})


@pytest.mark.parametrize("grant", ["", "owner", "score,", "score:", "score:a,", ":a", "score read", "Score"])
async def test_a_grant_of_what_there_is_not_is_refused(issuer, grant):
    with pytest.raises(UsageError, match="is not what somebody may do"):
        async with guarded(issuer, oidc_grant={"x": grant}):
            pass


@pytest.fixture
def files(tmp_path):
    """The server's certificate, and an authority of its clients, as settings; and what makes clients' certificates."""
    authority = trustme.CA()

    def issue(of, *names):
        made, path = of.issue_cert(*names, common_name=f"{names[0]}-1"), tmp_path / f"{names[0]}.pem"
        made.private_key_and_cert_chain_pem.write_to_path(path)
        return str(path)

    own = issue(authority, "127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    settings = {"certificate": own, "private_key": own, "client_ca": str(tmp_path / "ca.pem")}
    return authority, issue, settings


def shows(authority, certificate=None):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        context.load_cert_chain(certificate)
    return context


async def test_a_client_certificate_opens_what_its_name_is_granted(files):
    authority, issue, settings = files
    grants = {"till-1": "score:cards", "ops.example.com": "read"}
    async with StubCluster(partitions=4) as cluster:
        await prepared(cluster)
        async with serving(cluster, client_grant=grants, **settings) as server:
            for names, expected in (
                (("till",), (200, 403, 403)),
                (("x", "ops.example.com"), (403, 200, 200)),
                (("nobody",), (401, 401, 401)),
            ):
                async with client(server, verify=shows(authority, issue(authority, *names))) as http:
                    codes = [(await http.get(path)).status_code for path in ("/v2/models/cards", "/jobs", "/")]
                    assert tuple(codes) == expected
                    assert (await http.get("/healthz")).status_code == 200
            async with client(server, verify=shows(authority, issue(authority, "nobody"))) as http:
                assert "no grant is for a name of this certificate" in (await http.get("/v2/models/cards")).text
            till = issue(authority, "till")
            async with client(server, verify=shows(authority, till)) as http:
                assert (await http.get("/v2/models/plain")).status_code == 403
                wrong = {"Authorization": "Bearer x"}  # who shows something else is not taken for the certificate's
                assert (await http.get("/v2/models/cards", headers=wrong)).status_code == 401
            stranger = trustme.CA()
            for shown in (None, issue(stranger, "till")):
                async with client(server, verify=shows(authority, shown)) as http:
                    with pytest.raises(httpx.TransportError):  # not even probes
                        await http.get("/healthz")


async def test_files_that_the_system_does_not_give_are_named(files):
    settings = files[2] | {"client_ca": "/proc/self/mem"}
    async with StubCluster(partitions=4) as cluster:
        with pytest.raises(SettingsError, match="authorities of /proc/self/mem cannot be used: Input/output error"):
            async with serving(cluster, **settings):
                pass


async def test_authorities_of_clients_are_replaced_without_a_restart(files, monkeypatch):
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0.0)
    authority, issue, settings = files
    after = trustme.CA()

    async def is_taken(server, certificate):
        async with client(server, verify=shows(authority, certificate)) as http:
            try:
                return (await http.get("/healthz")).status_code == 200
            except httpx.TransportError:
                return False

    async with StubCluster(partitions=4) as cluster:
        await prepared(cluster)
        async with serving(cluster, **settings) as server:
            old, new = issue(authority, "old"), issue(after, "new")
            assert (await is_taken(server, old), await is_taken(server, new)) == (True, False)
            after.cert_pem.write_to_path(settings["client_ca"])
            assert (await is_taken(server, old), await is_taken(server, new)) == (False, True)


async def test_grpc_asks_for_the_same_certificates(files):
    authority, issue, settings = files
    call = "/inference.GRPCInferenceService/ServerMetadata"
    async with StubCluster(partitions=4) as cluster:
        await prepared(cluster)
        async with serving(cluster, grpc=0, client_grant={"till-1": "score"}, **settings) as server:
            root = authority.cert_pem.bytes()

            async def code(certificate):
                pem = None if certificate is None else Path(certificate).read_bytes()  # noqa: ASYNC240 -- it is small
                credentials = grpc.ssl_channel_credentials(root, pem, pem)
                async with grpc.aio.secure_channel(server.grpc.address, credentials) as channel:
                    try:
                        await channel.unary_unary(call)(b"", timeout=60)
                    except grpc.aio.AioRpcError as error:
                        return error.code().name
                return "OK"

            assert await code(issue(authority, "till")) == "OK"
            assert await code(issue(authority, "other")) == "UNAUTHENTICATED"
            for shown in (None, issue(trustme.CA(), "till")):
                assert await code(shown) == "UNAVAILABLE"
