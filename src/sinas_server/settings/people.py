"""Who may log in, how, and for how long."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, EmailStr, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode

from sinas_server.kit.texts import issuer_url, json_object
from sinas_server.settings.checks import Names


class PeopleSettings(BaseSettings):
    """Logins, tokens and their limits."""

    # People and tokens
    superadmin_email: EmailStr = Field(
        "admin@example.com", description="Administrator, created on first start if no such user exists."
    )
    signup: Literal["open", "closed"] = Field(
        "open",
        description="What a login from an unknown address does. `open`: the user is created when the code is "
        "verified. `closed`: no mail is sent and no user is created; the answer looks the same.",
    )
    auth_mode: Literal["otp", "password", "password+otp"] = Field(
        "otp",
        description="How people log in: with a code from a mail, with a password, or with a password and then a code.",
    )
    password_min_length: int = Field(12, ge=8, le=128, description="Shortest password that may be set, in characters.")
    oidc_issuer: Annotated[str, AfterValidator(issuer_url)] | None = Field(
        None,
        description="OpenID Connect provider whose users may log in too, by its issuer URL; the rest is discovered. "
        "Its redirect URI is `/auth/oidc/callback` of this platform.",
    )
    oidc_client_id: str | None = Field(None, description="This platform's client id at the provider.")
    oidc_client_secret: SecretStr | None = Field(
        None, description="This platform's secret at the provider. Unset: a public client."
    )
    oidc_scopes: str = Field("openid email profile", description="Scopes asked of the provider, by spaces.")
    oidc_redirect_uris: Names = Field(
        (),
        description="Comma-separated addresses of consoles and apps that a login at the provider may return to, "
        "compared exactly. Empty: only the root of this platform.",
    )
    oidc_role_claim: str | None = Field(
        None,
        description="Claim that holds the user's groups at the provider; a dotted path, like `realm_access.roles`, "
        "leads into objects.",
    )
    oidc_role_map: Annotated[dict[str, str], NoDecode, BeforeValidator(json_object)] = Field(
        {},
        description='Which role each value of the claim gives, as JSON: `{"staff": "Users"}`. At each login at the '
        "provider, the memberships of the roles named here become what the claim says.",
    )
    access_token_expire_minutes: int = Field(15, ge=1, description="Life of an access token, in minutes.")
    refresh_token_expire_days: int = Field(30, ge=1, description="Life of a refresh token, in days.")
    otp_expire_minutes: int = Field(10, ge=1, description="Life of a login code, in minutes.")
    otp_max_attempts: int = Field(2, ge=1, description="Wrong guesses after which a login code is void.")
    rate_limit_login_ip_max: int = Field(10, ge=1, description="Login requests per address of origin and window.")
    rate_limit_login_email_max: int = Field(5, ge=1, description="Login requests per e-mail address and window.")
    rate_limit_otp_ip_max: int = Field(10, ge=1, description="Code verifications per address of origin and window.")
    rate_limit_window_seconds: int = Field(900, ge=1, description="Window of the three limits above, in seconds.")
