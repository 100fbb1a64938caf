"""Commands about who may do what, answered by a running Sinas."""

from urllib.parse import quote

from sinas_server.cli.console import fail, say
from sinas_server.cli.remote import Server

PLACES = {"role": "one of the user's roles", "api_key": "the API key"}


def explain(server: Server, user: str, permission: str) -> None:
    """Print which role and grant give a user a permission, or what would have to be granted. `user`: e-mail or id."""
    body = {"permission": permission, "user_id": _user_id(server, user)}
    answer = server.request("POST", "/auth/explain", body).json()
    if answer["allowed"]:
        say(f"{answer['user_email']} may: {permission}")
        for grant in answer["grants"]:
            say(f"  role {grant['role']} holds {grant['grant']}")
        return
    say(f"{answer['user_email']} may not: {permission}")
    if answer["decided_by"]["source"] == "inactive":
        say("  the user is deactivated")
    for missing in answer["missing"]:
        say(f"  grant {missing['permission']} to {PLACES[missing['to']]}")


def _user_id(server: Server, user: str) -> str:
    if "@" not in user:
        return user
    found = server.request("GET", f"/api/v1/users?search={quote(user)}&limit=1000").json()
    ids = [str(each["id"]) for each in found if each["email"] == user.lower()]
    return ids[0] if ids else fail(f"no user '{user}' that your key may see")
