"""Commands that talk to a running Sinas over its API."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import orjson
import typer
from pydantic import JsonValue
from rich.console import Console

from sinas_server.cli.console import fail, say, settings_or_exit

PATIENCE = httpx2.Timeout(30, read=120)
MOST_SHOWN = 120


@dataclass(frozen=True)
class Server:
    """Where it is and how to get in."""

    url: str
    key: str

    def request(self, method: str, path: str, body: object = None) -> httpx2.Response:
        """One call; exits 1 with the server's reason if it refuses."""
        try:
            answer = httpx2.request(method, self.url + path, json=body, headers=self.headers, timeout=PATIENCE)
        except httpx2.HTTPError as error:
            fail(f"{self.url} does not answer: {error}. Is `sinas up` running?")
        if answer.is_error:
            fail(f"{method} {path}: {answer.status_code} {reason_of(answer.content)}")
        return answer

    @property
    def headers(self) -> dict[str, str]:
        """The credential."""
        return {"Authorization": f"Bearer {self.key}"}


def address(url: str | None) -> str:
    """Where the server is: as given, else SINAS_URL, else this machine."""
    return (url or os.environ.get("SINAS_URL") or f"http://localhost:{settings_or_exit().port}").rstrip("/")


def health(url: str) -> None:
    """Print what the server says of itself; exits 1 if it does not answer or is not healthy."""
    try:
        answer = httpx2.get(f"{url}/health", timeout=5)
    except httpx2.HTTPError as error:
        fail(f"{url} does not answer: {error}")
    say(answer.text)
    if answer.is_error:
        fail(f"{url} is not healthy")


def connect(url: str | None, key: str | None) -> Server:
    """The server and key to use; exits 2 where no key can be found."""
    found = key or os.environ.get("SINAS_API_KEY") or _admin_key(settings_or_exit().sinas_data_dir / "admin-key")
    if not found:
        fail("no API key: pass --api-key, set SINAS_API_KEY, or run where the data directory is (SINAS_DATA_DIR)", 2)
    return Server(address(url), found)


def _admin_key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def reason_of(content: bytes) -> str:
    """Why the server refused, from the body of its answer."""
    try:
        detail = orjson.loads(content).get("detail")
    except (orjson.JSONDecodeError, AttributeError):
        return content.decode(errors="replace")[:MOST_SHOWN]
    return detail if isinstance(detail, str) else orjson.dumps(detail).decode()


def apply(server: Server, file: Path, *, dry_run: bool, force: bool) -> None:
    """Send the document with its variables filled in; print each change; exits 1 with the errors if there are any."""
    from sinas_server.config.document import DocumentError, fill  # lazy: only this command reads documents
    from sinas_server.config.startup import file_lookup  # lazy: the same

    try:
        text = fill(file.read_text(), file_lookup(), file.parent)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file} cannot be read: {error}")
    except DocumentError as error:
        fail("\n".join(f"{file}: {problem}" for problem in error.problems))
    body = {"config": text, "dryRun": dry_run, "force": force}
    report = server.request("POST", "/api/v1/config/apply", body).json()
    for change in report["changes"]:
        say(f"{change['action']:<10} {change['resourceType']} {change['resourceName']}")
    for warning in report["warnings"]:
        say(f"warning    {warning}")
    if report["errors"]:
        fail("\n".join(f"error      {error}" for error in report["errors"]))
    if dry_run:
        say("(dry run: nothing was changed)")


def rotate_keys(server: Server) -> None:
    """Have the server do it, and say how much it was; exits 1 if something cannot be read any more."""
    done = server.request("POST", "/api/v1/system/rotate-keys").json()
    say(f"{done['resealed']} values are under the first key now that were not")
    if done["unreadable"]:
        fail(f"{done['unreadable']} values cannot be read: their key is not in ENCRYPTION_KEY; they were left alone")
    say("the keys behind the first one are not needed any more")


def export(server: Server, *, managed_only: bool) -> None:
    """Print the document."""
    query = "?managed_only=true" if managed_only else ""
    say(server.request("GET", f"/api/v1/config/export{query}").text.rstrip())


def chat(server: Server, agent: str, message: str, chat_id: str | None) -> None:
    """Send a message and print the answer as it arrives, with the tool calls in between.

    A call that needs approval is asked about where there is somebody to ask.
    """
    if "/" not in agent:
        fail("the agent must be NAMESPACE/NAME", 2)
    if chat_id is None:
        chat_id = str(server.request("POST", f"/agents/{agent}/chats", {}).json()["id"])
    shown = _Conversation()
    shown.follow(_events(server, "POST", f"/chats/{chat_id}/messages/stream", {"content": message}))
    while shown.waiting and sys.stdin.isatty():
        channel = _decide(server, chat_id, shown.waiting)
        shown.follow(_events(server, "GET", f"/chats/{chat_id}/stream/{channel}"))
    for call in shown.waiting:
        shown.line(f'decide with: POST /chats/{chat_id}/approve-tool/{call} {{"approved": true}}')
    shown.line(f"chat {chat_id}", "dim")
    if shown.failed:
        fail("the agent could not answer")


class _Conversation:
    """Prints the events of a turn, and remembers what they mean for the command."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._in_line = False
        self.failed = False
        self.waiting: list[str] = []

    def follow(self, events: Iterator[tuple[str, dict[str, JsonValue]]]) -> None:
        """Print events to their end."""
        self.waiting = []
        for name, data in events:
            self._show(name, data)

    def line(self, text: str, style: str = "") -> None:
        """Print a line of its own."""
        if self._in_line:
            self._console.print()
        self._in_line = False
        self._console.print(text, style=style, markup=False)

    def _show(self, name: str, data: dict[str, JsonValue]) -> None:
        if name == "message":
            text = str(data.get("content", ""))
            self._console.print(text, end="", markup=False)
            self._in_line = not text.endswith("\n")
        elif name == "tool_start":
            self.line(f"→ {data['name']} {data['arguments']}", "cyan")
        elif name == "tool_end":
            self.line(f"← {data['name']} {_shortened(data['result'])}", "green")
        elif name == "approval_required":
            self.waiting.append(str(data["tool_call_id"]))
            what = f"{data['function_namespace']}/{data['function_name']} {orjson.dumps(data['arguments']).decode()}"
            self.line(f"approval required: {what}", "yellow")
        elif name == "restart":
            self.line("(the answer starts again)", "yellow")
        elif name == "error":
            self.failed = True
            self.line(str(data["error"]), "red")


def _shortened(result: JsonValue) -> str:
    text = result if isinstance(result, str) else orjson.dumps(result).decode()
    return text[:MOST_SHOWN] + ("…" if len(text) > MOST_SHOWN else "")


def _decide(server: Server, chat_id: str, waiting: list[str]) -> str:
    """Ask about each call; the channel on which the turn goes on."""
    channel = ""
    for call in waiting:
        approved = typer.confirm("approve?", default=False)
        answer = server.request("POST", f"/chats/{chat_id}/approve-tool/{call}", {"approved": approved})
        channel = str(answer.json()["channel_id"])
    return channel


def _events(server: Server, method: str, path: str, body: object = None) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    try:
        with httpx2.stream(method, server.url + path, json=body, headers=server.headers, timeout=PATIENCE) as answer:
            if answer.is_error:
                fail(f"{method} {path}: {answer.status_code} {reason_of(answer.read())}")
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, orjson.loads(line.removeprefix("data: "))
    except httpx2.HTTPError as error:
        fail(f"{server.url} stopped answering: {error}")
