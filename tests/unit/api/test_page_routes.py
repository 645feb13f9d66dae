"""The files of the page, as they are served, and that what they name exists."""

import re
from pathlib import Path

import pytest

from orchestrator.api.routes import page_routes
from orchestrator.api.routes.page_routes import FOREVER, POLICY, PageRoutes
from orchestrator.domain.queue.queue_states import FINAL, QueueState
from orchestrator.goodput.time_class import TimeClass
from orchestrator.run_facts.step_point import PHASES
from orchestrator.run_facts.step_series import CURVES
from tests.served_queue import ServedQueue

pytestmark = pytest.mark.unit

PAGE = Path(page_routes.__file__).parents[1] / "page"
SCRIPTS = sorted(PAGE.glob("*.js"))
MOST_LINES = 200


def source(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def test_the_page_is_served_without_a_token_and_with_a_strict_policy(served: ServedQueue) -> None:
    answer = served.raw().get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"
    directives = dict(part.strip().split(" ", 1) for part in POLICY.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == directives["connect-src"] == "'self'"
    assert directives["frame-ancestors"] == "'none'"
    assert "unsafe" not in POLICY
    for inline in ("<style", "style=", " onclick", "<script>", "http:", "https:"):
        assert inline not in answer.text
    assert served.raw().head("/").status_code == 200
    refused = served.raw().post("/")
    assert (refused.status_code, set(refused.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})


def test_every_file_has_its_type_and_is_kept_for_ever_under_its_hash(served: ServedQueue) -> None:
    client, routes = served.raw(), PageRoutes()
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml", "txt": "text/plain"}
    for name in routes.names:
        answer = client.get(f"/page/{routes.version}/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-type"].startswith(types[name.rpartition(".")[2]]), name
        assert answer.headers["cache-control"] == FOREVER
        assert answer.headers["content-security-policy"] == POLICY
        again = client.get(f"/page/{routes.version}/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    wanted = re.findall(r'(?:href|src)="page/(\w+)/([^"]+)"', client.get("/").text)
    assert len(wanted) == 5
    assert {version for version, _ in wanted} == {routes.version}
    assert {name for _, name in wanted} <= set(routes.names)


@pytest.mark.parametrize(
    "path",
    [
        "/page/{version}/missing.js", "/page/{version}/", "/page/{version}/index.html", "/page/0000/app.js",
        "/page/{version}/../page_routes.py", "/page/{version}/%2e%2e/api_app.py", "/page/{version}//etc/passwd",
        "/page/{version}/vendor/../../api_app.py", "/page/{version}/vendor%2f..%2fapp.js",
        "/page/{version}/..%5capp.js",
    ],
)  # fmt: skip
def test_nothing_else_is_served(served: ServedQueue, path: str) -> None:
    answer = served.raw().get(path.format(version=PageRoutes().version))
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"


def test_a_changed_file_has_another_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = PageRoutes()
    sources = page_routes._sources()
    (tmp_path / "app.js").write_text(source("app.js") + "\n")
    monkeypatch.setattr(page_routes, "_sources", lambda: {**sources, "app.js": tmp_path / "app.js"})
    assert PageRoutes().version != before.version


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_small_modules_that_make_no_markup(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    assert text.startswith("// "), "each says what it is for"
    for name in re.findall(r'from "\./([^"]+)"', text):
        assert (PAGE / name).is_file(), name
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "localStorage",
    ):
        assert sink not in text, sink


def test_a_module_is_used() -> None:
    imported = {name for script in SCRIPTS for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert {script.name for script in SCRIPTS} - imported == {"app.js"}


def test_the_page_knows_the_states_phases_curves_and_classes_of_this_version() -> None:
    groups = re.findall(r"^  (\w+): \[\"\w+\", \[([^\]]*)\]\]", source("runs_view.js"), re.MULTILINE)
    filters = {name: re.findall(r'"(\w+)"', states) for name, states in groups}
    assert sorted(state for states in filters.values() for state in states) == sorted(QueueState), "each in one filter"
    for script in ("run_view.js", "run_actions.js"):
        final = re.search(r"const FINAL = \[([^\]]*)\]", source(script))
        assert final is not None
        assert set(re.findall(r'"(\w+)"', final.group(1))) == FINAL
    phases = re.search(r"const PHASES = \{([^}]*)\}", source("run_charts.js"))
    assert phases is not None
    assert tuple(re.findall(r"(\w+):", phases.group(1))) == PHASES
    assert {"loss", "tokens_per_s", *(f"{phase}_s" for phase in PHASES)} <= set(CURVES)
    styles = re.search(r"const STYLES = \{([^}]*)\}", source("run_records.js"))
    assert styles is not None
    assert set(re.findall(r"(\w+):", styles.group(1))) <= set(TimeClass)


def test_the_chart_library_comes_with_its_licence() -> None:
    assert "(v1.6.32)" in source("vendor/uPlot.esm.js")[:400]
    assert "The MIT License" in source("vendor/uPlot.LICENSE.txt")
