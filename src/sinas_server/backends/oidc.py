"""An OpenID Connect provider as its relying party meets it (OpenID Connect Core 1.0 and Discovery 1.0, RFC 7636)."""

import asyncio
import base64
import hmac
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlencode

import httpx2
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import JWKRegistry, Key
from pydantic import BaseModel, JsonValue, ValidationError

from sinas_server.backends.net import ForbiddenAddressError, check_endpoint
from sinas_server.backends.transport import GuardedTransport

ALGORITHMS = frozenset({f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)} | {"EdDSA"})
"""Asymmetric ones only: with another, whoever knows the client secret or a public key could sign."""
KEY_TYPES = ("RSA", "EC", "OKP")
KNOWN_FOR = 3600.0
"""Seconds after which discovery and keys are asked for again."""
LEAST_PAUSE = 30.0
"""Seconds between two requests for the keys, however many tokens name an unknown one."""
LEEWAY = 60
"""Seconds by which the clocks may differ."""
Claims = dict[str, JsonValue]
Part = TypeVar("Part", bound=BaseModel)


class ProviderUnavailableError(Exception):
    """The provider does not answer, or not as the protocol says; the message says which."""


class RefusedError(Exception):
    """The provider, or the check of its token, says no; the message says why."""


@dataclass(frozen=True)
class OidcClient:
    """What this platform is at the provider."""

    issuer: str
    client_id: str
    client_secret: str | None
    scopes: str


@dataclass(frozen=True)
class Flow:
    """What one login by the browser is bound to."""

    redirect_uri: str
    state: str
    nonce: str
    challenge: str
    """BASE64URL(SHA256(code verifier))."""


class _Metadata(BaseModel):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    id_token_signing_alg_values_supported: list[str] = ["RS256"]
    token_endpoint_auth_methods_supported: list[str] = ["client_secret_basic"]


class _KeySet(BaseModel):
    keys: list[dict[str, JsonValue]]


class _Tokens(BaseModel):
    id_token: str
    access_token: str | None = None


class _UserInfo(BaseModel, extra="allow"):
    sub: str


@dataclass(frozen=True)
class _Known:
    metadata: _Metadata
    keys: Mapping[str | None, Key]
    at: float


class OidcProvider:
    """Discovers the provider when it is first needed, and remembers what it said for an hour."""

    def __init__(self, client: OidcClient) -> None:
        self._client = client
        self._http: httpx2.AsyncClient | None = None
        self._known: _Known | None = None
        self._turn = asyncio.Lock()

    @property
    def issuer(self) -> str:
        """The provider's identifier."""
        return self._client.issuer

    async def authorization_url(self, flow: Flow) -> str:
        """Where the browser goes to log in. Raises `ProviderUnavailableError`."""
        endpoint = (await self._discovered()).metadata.authorization_endpoint
        query = {
            "response_type": "code",
            "client_id": self._client.client_id,
            "scope": self._client.scopes,
            "redirect_uri": flow.redirect_uri,
            "state": flow.state,
            "nonce": flow.nonce,
            "code_challenge": flow.challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}"

    async def redeem(self, code: str, redirect_uri: str, verifier: str, nonce: str) -> Claims:
        """What the provider says about whoever brought this code: the ID token's claims and those of userinfo.

        Raises `RefusedError` and `ProviderUnavailableError`.
        """
        metadata = (await self._discovered()).metadata
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        headers = self._authenticate(metadata, form)
        tokens = _read(_Tokens, await self._send("POST", metadata.token_endpoint, headers, form))
        claims = await self.verify(tokens.id_token, nonce)
        if metadata.userinfo_endpoint is None or tokens.access_token is None:
            return claims
        bearer = {"Authorization": f"Bearer {tokens.access_token}"}
        about = _read(_UserInfo, await self._send("GET", metadata.userinfo_endpoint, bearer)).model_dump(mode="json")
        if about["sub"] != claims["sub"]:
            raise RefusedError("the ID token and userinfo are about different users")
        return {**about, **claims}

    async def verify(self, id_token: str, nonce: str | None = None) -> Claims:
        """The claims of an ID token that this provider made for this client; `nonce` must match if it is given.

        Raises `RefusedError` and `ProviderUnavailableError`.
        """
        try:
            header = jws.extract_compact(id_token.encode()).headers()
            if str(header.get("typ", "JWT")).upper() != "JWT":  # access and logout tokens have types of their own
                raise RefusedError(f"a token of type {header['typ']} is no ID token")
            kid = header.get("kid")
            key = await self._key(kid if isinstance(kid, str) else None)
            metadata = (await self._discovered()).metadata
            allowed = sorted(ALGORITHMS.intersection(metadata.id_token_signing_alg_values_supported))
            claims: Claims = jwt.decode(id_token, key, algorithms=allowed).claims
            self._registry().validate(claims)
        except (JoseError, ValueError, TypeError) as error:
            raise RefusedError(f"the ID token is not valid: {error}") from error
        self._require(claims, nonce)
        return claims

    def _registry(self) -> jwt.JWTClaimsRegistry:
        return jwt.JWTClaimsRegistry(
            leeway=LEEWAY,
            iss={"essential": True, "value": self._client.issuer},
            aud={"essential": True, "value": self._client.client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
        )

    def _require(self, claims: Claims, nonce: str | None) -> None:
        """What Core 3.1.3.7 asks for beyond the registered claims."""
        audience, party, said = claims["aud"], claims.get("azp"), claims.get("nonce")
        several = isinstance(audience, list) and len(audience) > 1
        if party not in (None, self._client.client_id) or (several and party is None):
            raise RefusedError("the ID token was made for another client")
        if "events" in claims:
            raise RefusedError("a logout token is no ID token")
        if not isinstance(claims["sub"], str) or not claims["sub"]:
            raise RefusedError("the ID token names no user")
        if nonce is not None and not (isinstance(said, str) and hmac.compare_digest(said.encode(), nonce.encode())):
            raise RefusedError("the ID token belongs to another login")

    def _authenticate(self, metadata: _Metadata, form: dict[str, str]) -> dict[str, str]:
        """The headers that say who asks, or the same in the form (RFC 6749, section 2.3.1)."""
        secret = self._client.client_secret
        if secret is not None and "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            pair = f"{quote(self._client.client_id, safe='')}:{quote(secret, safe='')}"
            return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
        form["client_id"] = self._client.client_id
        if secret is not None:
            form["client_secret"] = secret
        return {}

    async def _key(self, kid: str | None) -> Key:
        known = await self._discovered()
        if _find(known.keys, kid) is None:
            known = await self._discovered(newer_than=known.at)
        key = _find(known.keys, kid)
        if key is None:
            raise RefusedError("the ID token is signed with a key that the provider does not publish")
        return key

    async def _discovered(self, newer_than: float | None = None) -> _Known:
        """What the provider said, asked again after an hour, or earlier if something newer is wanted."""
        async with self._turn:
            known, age = self._known, time.monotonic() - (self._known.at if self._known else 0)
            wanted = newer_than is not None and known is not None and known.at <= newer_than
            if known is None or age > KNOWN_FOR or (wanted and age > LEAST_PAUSE):
                self._known = known = await self._discover()
            return known

    async def _discover(self) -> _Known:
        place = f"{self._client.issuer.rstrip('/')}/.well-known/openid-configuration"
        metadata = _read(_Metadata, await self._send("GET", place))
        if metadata.issuer != self._client.issuer:
            raise ProviderUnavailableError(f"the provider calls itself {metadata.issuer}, not {self._client.issuer}")
        published = _read(_KeySet, await self._send("GET", metadata.jwks_uri)).keys
        return _Known(metadata, dict(_usable(published)), time.monotonic())

    async def _send(
        self, method: str, url: str, headers: dict[str, str] | None = None, form: dict[str, str] | None = None
    ) -> bytes:
        if self._http is None:
            self._http = httpx2.AsyncClient(transport=GuardedTransport(max_connections=10), timeout=10)
        try:
            check_endpoint(url)
            sent = {"Accept": "application/json", **(headers or {})}
            answer = await self._http.request(method, url, headers=sent, data=form)
        except (httpx2.HTTPError, ForbiddenAddressError, ValueError) as error:
            raise ProviderUnavailableError(f"{url} cannot be used: {error}") from error
        if form is not None and answer.status_code in (400, 401, 403):
            raise RefusedError(f"the provider refuses the code: {answer.text[:300]}")
        if answer.status_code != 200:
            raise ProviderUnavailableError(f"{url} answers {answer.status_code}")
        return answer.content

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()


def _read(shape: type[Part], body: bytes) -> Part:
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise ProviderUnavailableError(f"the provider's answer is not as the protocol says: {error}") from error


def _usable(published: list[dict[str, JsonValue]]) -> Iterator[tuple[str | None, Key]]:
    """The public keys that may sign, by their ids; keys of kinds that are not known here are passed over."""
    for described in published:
        if described.get("use", "sig") != "sig" or described.get("kty") not in KEY_TYPES:
            continue
        try:
            key = JWKRegistry.import_key({name: value for name, value in described.items() if isinstance(value, str)})
        except (JoseError, ValueError):
            continue
        yield key.kid, key


def _find(keys: Mapping[str | None, Key], kid: str | None) -> Key | None:
    """The key of this id; where the token names none, the only key there is."""
    if kid is None and len(keys) == 1:
        return next(iter(keys.values()))
    return keys.get(kid)
