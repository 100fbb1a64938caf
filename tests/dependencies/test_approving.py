"""Approving packages over HTTP and in YAML: who may, which names and versions, and what is refused."""

import pytest

from sinas_server.dependencies.bootstrap import bootstrap
from sinas_server.kernel.access import SYSTEM
from sinas_server.kernel.runtime import Runtime
from sinas_server.settings import Settings
from tests.dependencies.conftest import approve, sets
from tests.people import Person

PATH = "/api/v1/dependencies"
DOCUMENT = """
apiVersion: sinas.co/v1
kind: SinasConfig
spec:
  dependencies:
    - packageName: Markitdown[all]
      version: ">=0.0.1a3"
    - package_name: six
"""


async def test_an_approval_answers_at_once_and_is_listed(admin: Person) -> None:
    made = await approve(admin, "Markitdown[PDF,All]", " 0.1.2 ")
    assert made | {"id": "", "installed_at": ""} == {
        "id": "",
        "package_name": "markitdown[all,pdf]",
        "version": "0.1.2",
        "installed_at": "",
        "installed_by": str(admin.id),
        "status": "pending",
        "message": None,
        "installed_version": None,
        "managed_by": None,
    }
    assert (await admin.http.get(PATH)).json() == [made]
    [asked] = await sets(admin)
    assert (asked["status"], asked["packages"], asked["ready_at"]) == ("pending", [], None)


@pytest.mark.parametrize("by", ["id", "package_name"])
async def test_it_is_withdrawn_by_id_or_name(admin: Person, by: str) -> None:
    made = await approve(admin, "six")
    assert (await admin.http.delete(f"{PATH}/{made[by]}")).status_code == 204
    assert (await admin.http.get(PATH)).json() == []
    assert (await admin.http.delete(f"{PATH}/{made[by]}")).status_code == 404
    await approve(admin, "six")


@pytest.mark.parametrize("again", ["python-dateutil", "Python_Dateutil", "python.dateutil[x]"])
async def test_a_package_is_approved_once_however_it_is_spelled(admin: Person, again: str) -> None:
    await approve(admin, "python-dateutil")
    answer = await admin.http.post(PATH, json={"package_name": again})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "dependency 'python-dateutil' already exists"


@pytest.mark.parametrize(
    ("version", "shown"),
    [
        ("2.1", "2.1"),
        (">=0.0.1a3", ">=0.0.1a3"),
        (">=2,<3", ">=2,<3"),
        ("1.*", "1.*"),
        ("", None),
        ("*", None),
        ("latest", None),
        (None, None),
    ],
)
async def test_versions(admin: Person, version: str | None, shown: str | None) -> None:
    assert (await approve(admin, "six", version))["version"] == shown


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"package_name": ""}, "package_name", "at least 1 character"),
        ({}, "package_name", "required"),
        ({"package_name": "a b"}, "package_name", "not the name of a Python package"),
        ({"package_name": "-r /etc/passwd"}, "package_name", "not the name of a Python package"),
        ({"package_name": "x @ https://example.com/x.whl"}, "package_name", "addresses and conditions"),
        ({"package_name": "x; python_version>'3'"}, "package_name", "addresses and conditions"),
        ({"package_name": "x==1"}, "package_name", "give the version as `version`"),
        ({"package_name": "x" * 256}, "package_name", "at most 255"),
        ({"package_name": "x", "version": "one"}, "version", "neither a version"),
        ({"package_name": "x", "version": "1 --index-url http://evil"}, "version", "neither a version"),
        ({"package_name": "x", "version": "1\n-r y"}, "version", "neither a version"),
        ({"package_name": "x", "version": 1}, "version", "string"),
    ],
)
async def test_what_is_no_package_or_version(admin: Person, body: dict[str, object], field: str, reason: str) -> None:
    answer = await admin.http.post(PATH, json=body)
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert problem["loc"] == ["body", field]
    assert reason in problem["msg"]
    assert await sets(admin) == []


async def test_only_administrators(user: Person, admin: Person) -> None:
    made = await approve(admin, "six")
    assert (await user.http.post(PATH, json={"package_name": "x"})).status_code == 403
    assert (await user.http.get(PATH)).json() == []
    assert (await user.http.delete(f"{PATH}/{made['id']}")).status_code == 403
    assert (await user.http.get(f"{PATH}/sets")).status_code == 403
    assert (await user.http.post(f"{PATH}/sets")).status_code == 403


class TestOnlyAllowed:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"allowed_packages": ("Requests", "python_dateutil", "markitdown[all]")})

    async def test_only_these_can_be_approved(self, admin: Person) -> None:
        for name in ("requests", "python-dateutil", "markitdown[pdf]"):
            await approve(admin, name)
        refused = await admin.http.post(PATH, json={"package_name": "six"})
        assert refused.status_code == 403
        assert refused.json()["detail"].startswith("'six' is not one of the ALLOWED_PACKAGES: Requests, ")
        applied = (await admin.http.post("/api/v1/config/apply", json={"config": DOCUMENT})).json()
        assert applied["success"] is False
        assert "ALLOWED_PACKAGES" in str(applied["errors"])

    async def test_the_client_is_not_approved_then(self, admin: Person, runtime: Runtime) -> None:
        await bootstrap(runtime, SYSTEM)
        assert (await admin.http.get(PATH)).json() == []


class TestOff:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"allow_package_installation": False})

    async def test_nothing_can_be_approved(self, admin: Person, runtime: Runtime) -> None:
        refused = await admin.http.post(PATH, json={"package_name": "six"})
        assert refused.status_code == 403
        assert "ALLOW_PACKAGE_INSTALLATION is false" in refused.json()["detail"]
        await bootstrap(runtime, SYSTEM)
        assert (await admin.http.get(PATH)).json() == []


async def test_yaml_there_and_back(admin: Person) -> None:
    applied = (await admin.http.post("/api/v1/config/apply", json={"config": DOCUMENT})).json()
    assert applied["success"], applied
    assert applied["warnings"] == []
    listed = {each["package_name"]: each for each in (await admin.http.get(PATH)).json()}
    assert listed["markitdown[all]"]["version"] == ">=0.0.1a3"
    assert listed["six"]["managed_by"] == "config"
    again = (await admin.http.post("/api/v1/config/apply", json={"config": DOCUMENT})).json()
    assert again["summary"]["unchanged"] == {"dependency": 2}
    exported = (await admin.http.get("/api/v1/config/export")).text
    assert "- packageName: markitdown[all]\n" in exported
    assert (await admin.http.post("/api/v1/config/apply", json={"config": exported})).json()["summary"]["updated"] == {}


async def test_yaml_that_is_wrong_says_where(admin: Person) -> None:
    wrong = DOCUMENT.replace("Markitdown[all]", "a b").replace("package_name: six", "version: '1'")
    answer = (await admin.http.post("/api/v1/config/validate", json={"config": wrong})).json()
    assert [error["path"] for error in answer["errors"]] == [
        "spec.dependencies[0].packageName",
        "spec.dependencies[1].packageName",
    ]


async def test_the_client_is_approved_once(admin: Person, runtime: Runtime) -> None:
    await bootstrap(runtime, SYSTEM)
    await bootstrap(runtime, SYSTEM)
    [client] = (await admin.http.get(PATH)).json()
    assert (client["package_name"], client["installed_by"]) == ("sinas", None)
    await admin.http.delete(f"{PATH}/sinas")
    await bootstrap(runtime, SYSTEM)
    assert (await admin.http.get(PATH)).json() == []
