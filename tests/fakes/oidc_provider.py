"""An OpenID Connect provider that nobody here wrote: npm `oidc-provider`, with its own pages for login and consent."""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode, urljoin, urlsplit

import httpx2
from joserfc.jwk import RSAKey

from tests.fakes.npm import Package, install, serving

PACKAGE = Package("oidc-provider", "9.13.3", "lib/index.js")
CLIENT_ID, CLIENT_SECRET = "sinas of tests", "a secret: with/odd+characters"
APP = "http://127.0.0.1:1/app"


@dataclass(frozen=True)
class Provider:
    """The running provider."""

    issuer: str
    people: Path

    def know(self, **people: Mapping[str, object]) -> None:
        """Make these its accounts, with their claims."""
        self.people.write_text(json.dumps(people))

    async def change_key(self) -> None:
        """From now on it signs with another key, and publishes that one only."""
        async with _browser() as browser:
            await browser.get(f"{self.issuer}/change-key")

    async def private_key(self) -> RSAKey:
        """The key it signs with now."""
        async with _browser() as browser:
            return RSAKey.import_key((await browser.get(f"{self.issuer}/private-key")).json())

    async def log_in(self, url: str, account: str) -> str:
        """Go to `url` as a browser without cookies does, log in and consent; where the provider sends it in the end."""
        async with _browser() as browser:
            answer = await browser.get(url)
            while True:
                if answer.is_redirect:
                    place = urljoin(str(answer.url), answer.headers["location"])
                    if not place.startswith(self.issuer):
                        return place
                    answer = await browser.get(place)
                    continue
                assert answer.status_code == 200, answer.text
                action = re.search(r'<form[^>]* action="([^"]+)"', answer.text)
                prompt = re.search(r'name="prompt" value="(\w+)"', answer.text)
                assert action and prompt, answer.text
                form = {"prompt": prompt[1], "login": account, "password": "any"}
                answer = await browser.post(urljoin(str(answer.url), action[1]), data=form)

    async def id_token(self, account: str, nonce: str | None = None) -> str:
        """An ID token that an app of the same client gets by itself."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code", "client_id": CLIENT_ID, "scope": "openid email groups", "redirect_uri": APP,
            "code_challenge": challenge, "code_challenge_method": "S256", **({"nonce": nonce} if nonce else {}),
        }  # fmt: skip
        came_back = await self.log_in(f"{self.issuer}/auth?{urlencode(query)}", account)
        code = parse_qs(urlsplit(came_back).query)["code"][0]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": APP, "code_verifier": verifier}
        async with _browser() as browser:
            answer = await browser.post(
                f"{self.issuer}/token", data=form, auth=(quote(CLIENT_ID), quote(CLIENT_SECRET))
            )
        if answer.status_code != 200:
            raise AssertionError(answer.text)
        token: str = answer.json()["id_token"]
        return token


def _browser() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(trust_env=False, timeout=30, verify=False)


@contextmanager
def oidc_provider(
    folder: Path, callback: str, method: str = "client_secret_basic", claims_in: str = "id_token"
) -> Iterator[Provider]:
    """A provider that knows one client, which comes back to `callback`. Raises `UnavailableError`."""
    people, client = folder / "people.json", folder / "client.json"
    people.write_text("{}")
    about = {"client_id": CLIENT_ID, "redirect_uris": [callback, APP], "token_endpoint_auth_method": method}
    client.write_text(json.dumps(about if method == "none" else about | {"client_secret": CLIENT_SECRET}))
    program = Path(__file__).with_suffix(".mjs")
    with serving(
        [str(program), str(install(PACKAGE)), str(people), str(client), claims_in], folder / "provider.log"
    ) as issuer:
        yield Provider(issuer, people)
