"""The commands of `sinas`: what runs the platform, and what talks to a running one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sinas_server.backends.sandbox import Egress
from sinas_server.cli import access, remote
from sinas_server.cli.console import fail, settings_or_exit

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help="Run Sinas, or talk to one."
)
worker = typer.Typer(no_args_is_help=True, help="Run a worker against given servers.")
app.add_typer(worker, name="worker")
agent_app = typer.Typer(no_args_is_help=True, help="Test agents.")
app.add_typer(agent_app, name="agent")
access_app = typer.Typer(no_args_is_help=True, help="Ask who may do what.")
app.add_typer(access_app, name="access")

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="TCP port of the API. Default: PORT, or 8000.")]
DataDirectory = Annotated[
    Path | None, typer.Option("--data-dir", help="Where everything is kept. Default: SINAS_DATA_DIR, or .sinas.")
]
Url = Annotated[str | None, typer.Option("--url", help="Address of the server. Default: SINAS_URL, or this machine.")]
Key = Annotated[
    str | None,
    typer.Option("--api-key", help="API key. Default: SINAS_API_KEY, or admin-key of the data directory."),
]
File = Annotated[Path, typer.Option("--file", "-f", help="YAML document.", exists=True, dir_okay=False)]


@app.command()
def up(port: Port = None, data_dir: DataDirectory = None) -> None:
    """Run everything on this machine in the foreground: servers, API, workers, scheduler."""
    from sinas_server.cli import server  # lazy: it loads what runs the platform

    server.up(settings_or_exit(port=port, sinas_data_dir=data_dir, sinas_mode="embedded"))


@app.command()
def down(data_dir: DataDirectory = None) -> None:
    """Stop what `sinas up` runs on this machine."""
    from sinas_server.cli import server  # lazy: it loads what runs the platform

    server.down(settings_or_exit(sinas_data_dir=data_dir))


@app.command()
def doctor(port: Port = None, data_dir: DataDirectory = None) -> None:
    """Say what this machine lacks to run Sinas, and what to do about it."""
    from sinas_server.cli import server  # lazy: it loads what runs the platform

    server.doctor(settings_or_exit(port=port, sinas_data_dir=data_dir, sinas_mode="embedded"))


@app.command()
def api(port: Port = None) -> None:
    """Serve the API against given servers (DATABASE_URL, REDIS_URL)."""
    from sinas_server.cli import server  # lazy: it loads what runs the platform

    server.api(settings_or_exit(port=port))


@worker.command("functions")
def worker_functions() -> None:
    """Execute functions against given servers."""
    from sinas_server.cli import server  # lazy: it loads what runs the platform

    server.workers(settings_or_exit(), "functions")


@worker.command("agents")
def worker_agents() -> None:
    """Run agents against given servers."""
    from sinas_server.cli import server  # lazy: it loads what runs the platform

    server.workers(settings_or_exit(), "agents")


@app.command()
def scheduler() -> None:
    """Run schedules and small tasks against given servers."""
    from sinas_server.cli import server  # lazy: it loads what runs the platform

    server.workers(settings_or_exit(), "scheduler")


@app.command()
def health(url: Url = None) -> None:
    """Say whether a Sinas answers; exits 1 if it does not."""
    remote.health(remote.address(url))


@app.command()
def apply(
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Take over resources made by hand.")] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Bring a running Sinas to what a YAML document declares; `${VAR}` is read from this environment."""
    remote.apply(remote.connect(url, api_key), file, dry_run=dry_run, force=force)


@app.command()
def export(
    managed_only: Annotated[bool, typer.Option("--managed-only", help="Only what a document keeps.")] = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Print the configuration of a running Sinas as YAML; secrets never leave it."""
    remote.export(remote.connect(url, api_key), managed_only=managed_only)


@app.command("rotate-keys")
def rotate_keys(url: Url = None, api_key: Key = None) -> None:
    """Encrypt everything of a running Sinas under the first key of ENCRYPTION_KEY, so that the others can go."""
    remote.rotate_keys(remote.connect(url, api_key))


@app.command()
def chat(
    agent: Annotated[str, typer.Argument(help="The agent, as NAMESPACE/NAME.")],
    message: Annotated[str, typer.Argument(help="What to say.")],
    chat_id: Annotated[str | None, typer.Option("--chat", help="Go on in this chat.")] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Say something to an agent and watch it answer, tool calls included."""
    remote.chat(remote.connect(url, api_key), agent, message, chat_id)


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The function: Python with `handler(input_data, context)`.")],
    given: Annotated[str, typer.Option("--input", help="`input_data` as JSON, or @FILE.")] = "{}",
    context: Annotated[str, typer.Option("--context", help="Values of `context` as JSON, or @FILE.")] = "{}",
    packages: Annotated[
        list[str] | None, typer.Option("--with", help="A package it imports, like 'pandas>=2'; may be repeated.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Time limit in seconds. Default: FUNCTION_TIMEOUT.")
    ] = None,
    egress: Annotated[Egress | None, typer.Option(help="What it may reach. Default: FUNCTION_EGRESS.")] = None,
) -> None:
    """Run a function file in the sandbox of this machine, without a server; its result is printed as JSON."""
    from sinas_server.cli import run as runner  # lazy: it loads the sandbox

    asked = runner.Run(file=file, input=given, context=context, packages=packages or (), egress=egress, timeout=timeout)
    runner.run(settings_or_exit(), asked)


@app.command()
def types(
    directory: Annotated[Path, typer.Argument(help="Where your functions are.", exists=True, file_okay=False)] = Path(),
) -> None:
    """Write `sinas_types.pyi`: types of what functions are given, for editors and type checkers."""
    from sinas_server.cli import run as runner  # lazy: it loads the sandbox

    runner.write_types(directory)


@access_app.command("explain")
def access_explain(
    user: Annotated[str, typer.Argument(help="The user's e-mail address or id.")],
    permission: Annotated[str, typer.Argument(help="The permission, like sinas.agents/support/bot.chat:all.")],
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Say which role and grant give a user a permission, or what would have to be granted."""
    access.explain(remote.connect(url, api_key), user, permission)


@agent_app.command("test")
def agent_test(  # noqa: PLR0913 - typer makes an option of each parameter
    path: Annotated[Path, typer.Argument(help="A scenario file, or a folder of them.", exists=True)],
    record: Annotated[bool, typer.Option("--record", help="Ask the models, and keep what they say.")] = False,
    replay: Annotated[bool, typer.Option("--replay", help="Ask no model: each scenario needs a recording.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Ask the models, whatever is recorded.")] = False,
    only: Annotated[str | None, typer.Option("--only", "-k", help="Part of the names of those to run.")] = None,
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=64, help="How many run at the same time.")] = 4,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the results here, as JUnit's XML.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the results here, as JSON.")] = None,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Run scenarios against the agents of a running Sinas; without --record, --replay or --live, what has a recording
    is replayed. Exits 1 if one fails, 2 if there is a mistake in one."""
    from sinas_server.cli.agent_tests import command  # lazy: only this command tests

    modes: list[Literal["record", "replay", "live"]] = []
    modes += ["record"] if record else []
    modes += ["replay"] if replay else []
    modes += ["live"] if live else []
    if len(modes) > 1:
        fail("--record, --replay and --live exclude each other", 2)
    wish = command.Wish(path=path, mode=modes[0] if modes else None, only=only, at_once=at_once, junit=junit, json=json)
    scenarios = command.chosen(wish)
    command.test(remote.connect(url, api_key), scenarios, wish)


def main() -> None:
    """Run the command line."""
    app()
