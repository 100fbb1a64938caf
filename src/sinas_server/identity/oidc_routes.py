"""The routes of logging in at an OpenID Connect provider: by the browser, or with a token an app has."""

import re
import secrets
from typing import Annotated
from urllib.parse import urlencode

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from sinas_server.identity import oidc
from sinas_server.identity.answers import OTPVerifyResponse, client_of, session_answer
from sinas_server.identity.limits import limit_provider_login
from sinas_server.kernel.errors import BadRequestError, SinasError
from sinas_server.kernel.http import Run, new_router

oidc_router = new_router("/auth", "auth")
COOKIE = "sinas_oidc"
MAX_TOKEN = 32_768


class ExternalAuthRequest(BaseModel):
    """A token of the configured provider."""

    token: str = Field(max_length=MAX_TOKEN, description="An ID token made for this platform's client.")
    nonce: str | None = Field(None, max_length=512, description="What the token's `nonce` must be, if given.")


class OidcSessionRequest(BaseModel):
    """The code with which `/auth/oidc/callback` sent the browser back."""

    code: str = Field(max_length=512, description="From the fragment of the address; works once, for a minute.")


@oidc_router.get("/oidc/start", include_in_schema=False)  # for browsers to go to, not for programs to call
async def start(
    request: Request,
    runtime: Run,
    redirect_uri: Annotated[str | None, Query(max_length=2048, description="Where the login ends.")] = None,
    state: Annotated[str, Query(max_length=512, description="Comes back with the result, unchanged.")] = "",
) -> Response:
    """Send the browser to the provider. In the end it comes to `redirect_uri` with `#code=` or `#error=`."""
    await limit_provider_login(runtime, client_of(request).address)
    had = request.cookies.get(COOKIE, "")
    browser = had if re.fullmatch(r"[\w-]{43}", had, re.ASCII) else secrets.token_urlsafe(32)  # two tabs share it
    answer = _go(await oidc.start(runtime, browser, redirect_uri, state))
    answer.set_cookie(
        COOKIE,
        browser,
        max_age=oidc.FLOW_SECONDS,
        path="/auth/oidc",
        secure=runtime.settings.public_url.startswith("https:"),
        httponly=True,
        samesite="lax",
    )
    return answer


@oidc_router.get("/oidc/callback", include_in_schema=False)  # for browsers to come back to
async def callback(
    request: Request,
    runtime: Run,
    state: Annotated[str, Query(max_length=512, description="From `/auth/oidc/start`.")] = "",
    code: Annotated[str | None, Query(max_length=MAX_TOKEN, description="From the provider.")] = None,
    error: Annotated[str | None, Query(max_length=512, description="Why the provider refused.")] = None,
    iss: Annotated[str | None, Query(max_length=2048, description="Who answers (RFC 9207).")] = None,
) -> Response:
    """Send the browser back to where the login was begun, with a code for `/auth/oidc/session`, or with the reason."""
    flow = await oidc.flow_of(runtime, request.cookies.get(COOKIE), state)
    if iss not in (None, oidc.provider_of(runtime).issuer):
        raise BadRequestError(oidc.WRONG_LOGIN)
    if code is None:
        result = {"error": error or "invalid_request"}
    else:
        try:
            result = {"code": await oidc.finish(runtime, flow, code)}
        except SinasError as refused:
            result = {"error": refused.code, "error_description": refused.detail}
    if flow["state"]:
        result["state"] = flow["state"]
    # In the fragment, which browsers do not send to servers or name as the referrer.
    return _go(f"{flow['redirect_uri']}#{urlencode(result)}")


def _go(url: str) -> Response:
    return RedirectResponse(url, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


@oidc_router.post("/oidc/session", response_model=OTPVerifyResponse, summary="Finish a login at the provider")
async def finish(body: OidcSessionRequest, request: Request, runtime: Run) -> Response:
    """Exchange the code that the browser came back with for tokens. A wrong or expired one is a 400."""
    return session_answer(await oidc.session_for_code(runtime, body.code, client_of(request)))


@oidc_router.post("/external-auth", response_model=OTPVerifyResponse, summary="Log in with a provider's token")
async def external_auth(body: ExternalAuthRequest, request: Request, runtime: Run) -> Response:
    """Exchange an ID token of the configured OpenID Connect provider for tokens. One that is not valid is a 400."""
    client = client_of(request)
    await limit_provider_login(runtime, client.address)
    return session_answer(await oidc.session_for_token(runtime, body.token, body.nonce, client))
