"""What `deploy/` promises: one part holds the engine's socket, and every variable is explained and known."""

import re
from pathlib import Path
from typing import cast

import yaml

from sinas_server.settings import Settings, variables

DEPLOY = Path("deploy")
OTHERS = {
    "DOCKER_GROUP",
    "BACKEND_REPLICAS",
    "APP_CPU_LIMIT",
    "APP_MEMORY_LIMIT",
    "APP_CPU_RESERVATION",
    "APP_MEMORY_RESERVATION",
}
"""Read by Compose, not by the platform."""


def services() -> dict[str, dict[str, object]]:
    document = cast(dict[str, dict[str, dict[str, object]]], yaml.safe_load((DEPLOY / "compose.yaml").read_text()))
    return document["services"]


def example() -> set[str]:
    return set(re.findall(r"^([A-Z_]+)=", (DEPLOY / "env.example").read_text(), re.MULTILINE))


def test_only_the_function_worker_holds_the_socket() -> None:
    with_socket = {name for name, service in services().items() if "docker.sock" in str(service)}
    assert with_socket == {"functions"}


def test_the_parts_of_the_platform_have_no_privileges() -> None:
    ours = {name: service for name, service in services().items() if service.get("image") == "sinas-server"}
    assert set(ours) == {"api", "functions", "agents", "scheduler"}
    for service in ours.values():
        assert (service["cap_drop"], service["read_only"]) == (["ALL"], True)
        assert "privileged" not in service
    assert "USER 10001" in (DEPLOY / "server.Dockerfile").read_text()


def test_only_the_proxy_is_reached_from_outside() -> None:
    assert {name for name, service in services().items() if "ports" in service} == {"caddy"}


def test_what_must_be_given_is_in_the_example() -> None:
    needed = set(re.findall(r"\$\{([A-Z_]+):\?", (DEPLOY / "compose.yaml").read_text()))
    assert needed
    assert needed <= example()


def test_every_variable_is_one_of_the_platform_or_of_compose() -> None:
    known = {name.upper() for field in Settings.model_fields for name in variables(field)} | OTHERS
    given = set(re.findall(r"\$\{([A-Z_]+)", (DEPLOY / "compose.yaml").read_text())) | example()
    for service in services().values():
        if service.get("image") == "sinas-server":
            given |= set(cast(dict[str, str], service["environment"]))
    assert given <= known
