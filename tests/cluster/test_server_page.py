"""The page of a server in a real browser, against a real HTTP server with a real queue."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.routes.page_routes import POLICY
from orchestrator.client.convoy_client import ConvoyClient
from orchestrator.client.server_choice import ServerAddress
from orchestrator.domain.events import CheckpointSaved
from orchestrator.domain.queue.queue_states import QueueState
from orchestrator.run_facts.quantity_text import count, duration, loss, size, when
from tests import events
from tests.browser import Browser, Visit, browser
from tests.cluster.page_world import HOSTILE, NODES, STEPS, PageWorld
from tests.cluster.test_report_page import MEASURE
from tests.served_queue import listening
from tests.unit.control.scripted import ANN, BOB, job

pytestmark = [pytest.mark.cluster, pytest.mark.needs("chromium")]

VIEWS = ("/runs", "/runs/{main}", "/runs/{waiting}", "/runs/{done}", "/queue", "/nodes")
READY = {
    "/runs": "document.querySelectorAll('tbody tr').length >= 7",
    "/runs/{main}": "document.querySelectorAll('.uplot').length === 3 && document.querySelector('.events li') && "
    "document.querySelector('.log div') && document.querySelector('#durability .facts')",
    "/runs/{waiting}": "document.querySelector('.wait:not([hidden])') && document.querySelector('.events li')",
    "/runs/{done}": "document.querySelector('.events li')",
    "/queue": "document.querySelectorAll('.queue').length === 2 && document.querySelector('#later tbody tr')",
    "/nodes": "document.querySelectorAll('.node').length === 3",
}
CARDS = "Object.fromEntries([...document.querySelectorAll('{}')].map((e) => [e.dataset.{}, e.innerText]))"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def world() -> Iterator[PageWorld]:
    base = Path("/dev/shm")
    home = Path(tempfile.mkdtemp(prefix="convoy-page-", dir=base if base.is_dir() else None))
    made = PageWorld(home)
    with listening(made.app) as made.url:
        yield made
    made.close()
    shutil.rmtree(home)
    assert made.log == []


@pytest.fixture
def api(world: PageWorld) -> Iterator[ConvoyClient]:
    with ConvoyClient(ServerAddress(world.url, world.secret(), None, "test")) as client:
        yield client


def go(visit: Visit, world: PageWorld, view: str) -> None:
    """To a view, and wait until it shows what it has to show."""
    path = view.format(**{name: getattr(world, name) for name in ("main", "waiting", "done")})
    visit.value(f"location.hash = {json.dumps(path)}")
    visit.until(READY[view])


def start(world: PageWorld, view: str = "/runs", **holder: Any) -> str:
    """Where `convoy server start` sends a person."""
    return f"{world.url}/#token={world.secret(**holder)}&view={view}"


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_every_view_is_drawn_without_errors(world: PageWorld, chromium: Browser, width: int, dark: bool) -> None:
    with chromium.visit(start(world), width, dark) as visit:
        for view in VIEWS:
            go(visit, world, view)
            found = visit.value(MEASURE)
            assert found["width"] == visit.value("document.documentElement.clientWidth"), (
                f"{view}: nothing is wider than the window"
            )
            assert found["pale"] == [], view
            assert visit.value("document.querySelectorAll('h1').length") == 1, view
            assert visit.value("document.querySelectorAll('img, iframe, object, main script').length") == 0, view
            assert "Convoy" in visit.value("document.title")
            assert "[object" not in visit.value("document.body.innerText"), view
        go(visit, world, "/runs/{main}")
        visit.until("document.querySelector('#training .legend')?.children.length === 2")
        visit.value("document.querySelector('.surface').scrollIntoView()")
        visit.value("document.querySelector('.surface').focus()")
        visit.press("ArrowRight")
        assert "step 3" in visit.until("document.querySelector('.tip:not([hidden])')?.innerText")
        assert "training loss" in visit.value("document.querySelector('.tip').innerText")
        assert visit.problems == []
        assert {url.split("/")[2] for url in visit.requests} == {world.url.split("/")[2]}, "nobody else is asked"
        assert "token" not in visit.value("location.href"), "it does not stay in the address"
        assert not any("token=" in url.partition("#")[0] for url in visit.requests)


def test_the_figures_are_those_of_the_api(world: PageWorld, chromium: Browser, api: ConvoyClient) -> None:
    with chromium.visit(start(world), 1440) as visit:
        go(visit, world, "/runs")
        rows = visit.value(CARDS.format("tbody tr", "key"))
        runs = {run.id: run for run in api.runs().runs}
        assert list(rows) == list(runs), "the newest first"
        for run in runs.values():
            state = run.run_state if run.state is QueueState.ACTIVE else run.state
            shown = rows[run.id]
            assert state in shown
            assert f"{run.step:,} / {run.total_steps:,}" in shown
            assert run.loss is None or loss(run.loss) in shown
            assert run.waits is None or run.waits.message in shown
        visit.value("location.hash = '#/runs?state=waiting'")
        waiting = [run.id for run in runs.values() if run.waits]
        visit.until(f"Object.keys({CARDS.format('tbody tr', 'key')}).join() === {json.dumps(','.join(waiting))}")

        go(visit, world, "/runs/{main}")
        progress, run, goodput = api.progress(world.main), api.run(world.main), api.goodput(world.main).recorded
        figures = visit.until("document.querySelector('[data-figure=goodput]')?.innerText !== '–' && "
                              + CARDS.format("[data-figure]", "figure"))  # fmt: skip
        assert figures == {
            "step": f"{STEPS:,}",
            "loss": loss(progress.loss),
            "validation_loss": loss(progress.validation_loss),
            "tokens_per_s": count(progress.tokens_per_s),
            "eta_s": duration(run.eta_s),
            "workers": "4 / 4–8",
            "goodput": f"{goodput['goodput']:.0%}",
            "recoveries": "1",
        }
        curve = api.curves(world.main, ["loss"], 400).curves["loss"]
        label = visit.value("document.querySelector('.surface').getAttribute('aria-label')")
        assert f"from {loss(curve[0].mean)} at step {curve[0].step}" in label
        assert f"to {loss(curve[-1].mean)} at step {curve[-1].step:,}" in label
        assert "2 marks" in label
        assert "398 (vaults)" in visit.value("document.querySelector('#incidents').innerText")
        assert "continue from step 1,198" in visit.value("document.querySelector('#durability').innerText")
        assert "87.5%" in visit.value("document.querySelector('#goodput').innerText")

        go(visit, world, "/queue")
        queues = visit.value(CARDS.format(".queue", "queue"))
        for queue in api.queues():
            assert f"Waiting\n{len(queue.waiting)}" in queues[queue.name]
            for name, amount in queue.used.items():
                assert f"{amount:g} {name} used" in queues[queue.name]
        lines = visit.value(CARDS.format("#waiting tbody tr", "key"))
        assert list(lines) == [world.waiting, world.second]
        waits = api.run(world.waiting).waits
        assert waits is not None
        assert lines[world.waiting].startswith("1\t")
        assert waits.message in lines[world.waiting]
        assert world.main in lines[world.waiting], "what is before it"

        go(visit, world, "/nodes")
        nodes = visit.value(CARDS.format(".node", "node"))
        assert set(nodes) == set(NODES)
        for node in api.nodes():
            assert f"{node.booked.get('CPU', 0):g} CPU of {node.total['CPU']:g} CPU booked" in nodes[node.id]
            assert all(run in nodes[node.id] for run in node.runs)
        assert visit.problems == []


def test_figures_and_streams_are_read_as_elsewhere(world: PageWorld, chromium: Browser) -> None:
    """The page's own arithmetic: text of figures as the command line has it, events however the network cuts them."""
    seconds = [0.0, 0.424, 1.26, 59.94, 60.0, 245.9, 3723.0, 273_645.0]
    numbers = [0.0, 987.0, 12_345.0, 1_600_000.0, 3_200_000_000.0]
    sizes = [0.0, 1023.0, 1536.0, 3.5 * 2**30, 2.0**41]
    wanted = [
        *(duration(each) for each in seconds), *(count(each) for each in numbers), *(size(each) for each in sizes),
        when(1_700_000_000.0), loss(2.34567),
    ]  # fmt: skip
    text = ": open\r\nretry: 2000\r\n\r\nid: 7\r\nevent: lines\r\ndata: ä\r\ndata: b\r\n\r\nid: 8\ndata:c\n\n"
    with chromium.visit(f"{world.url}/#/runs", 390) as visit:
        place = visit.value("document.querySelector('script').src.replace('app.js', '')")
        found = visit.value(
            f"import('{place}text.js').then((t) => [...{seconds}.map(t.duration), ...{numbers}.map(t.count), "
            f"...{sizes}.map(t.size), t.when(1700000000), t.loss(2.34567)])"
        )
        assert found == wanted
        for piece in (1, 2, 3, 5, 8, 1000):
            found = visit.value(
                f"import('{place}stream.js').then(({{ EventParser }}) => {{ "
                f"const found = [], text = {json.dumps(text)}, size = {piece};"
                "const parser = new EventParser((event) => found.push([event.type, event.data, event.id]));"
                "for (let i = 0; i < text.length; i += size) parser.add(text.slice(i, i + size)); return found })"
            )
            assert found == [["lines", "ä\nb", "7"], ["message", "c", "8"]], piece


def test_what_happens_is_shown_without_a_reload(world: PageWorld, chromium: Browser, api: ConvoyClient) -> None:
    with chromium.visit(start(world), 1440) as visit:
        go(visit, world, "/runs")
        fresh = world.server.submit(job("fresh"), BOB)
        visit.until(f"document.querySelector('[data-key={fresh}]')")

        go(visit, world, "/runs/{main}")
        world.recorder.on_event(events.event(CheckpointSaved, world.now_s, step=1234))
        visit.until("document.querySelector('.events li')?.innerText.includes('checkpoint.saved')")
        assert "step 1234" in visit.value("document.querySelector('.events li').innerText")
        world.say(2, f"a line that is new {HOSTILE}")
        visit.until("document.querySelector('.log')?.lastChild?.innerText.includes('a line that is new')")
        assert "<img src=x" in visit.value("document.querySelector('.log').lastChild.innerText"), "as text"
        assert "\u202e" not in visit.value("document.body.innerText"), "nothing changes the direction of text"
        assert "red" in visit.value("document.querySelector('.log').innerText")
        assert "\x1b" not in visit.value("document.querySelector('.log').innerText")
        kept = visit.value("document.querySelectorAll('.events li').length")

        visit.value(f"location.hash = '#/runs/{fresh}'")
        visit.until("document.querySelector('[data-action=pause]')")
        visit.value("document.querySelector('[data-action=pause]').click()")
        assert visit.until("document.querySelector('dialog[open] h2')?.innerText") == "Pause fresh?"
        visit.press("Escape")
        visit.until("!document.querySelector('dialog')")
        assert api.run(fresh).state is QueueState.QUEUED, "nothing happens without a yes"
        visit.value("document.querySelector('[data-action=pause]').click()")
        visit.value("document.querySelector('dialog [type=submit]').click()")
        visit.until("document.querySelector('[data-action=resume]')")
        assert api.run(fresh).state is QueueState.PAUSED
        assert "paused by root" in visit.until("document.querySelector('.wait:not([hidden])')?.innerText")
        visit.until("document.querySelector('.events li')?.innerText.includes('queued → paused')")
        api.act(fresh, "cancel")
        visit.until("document.querySelector('h1 .badge')?.innerText === 'cancelled'")
        visit.until("document.querySelector('#events .live')?.innerText.includes('the run has ended')")

        go(visit, world, "/runs/{main}")
        visit.until(f"document.querySelectorAll('.events li').length === {kept}")
        assert visit.value("document.title") != "owned"
        assert visit.problems == []
        markup = "(() => { try { document.body.innerHTML = '<b>x</b>' } catch (e) { return e.name } })()"
        assert visit.value(markup) == "TypeError", "the browser itself refuses markup from text"
        assert "require-trusted-types-for 'script'" in POLICY


def test_a_person_signs_in_once_and_sees_what_the_role_permits(world: PageWorld, chromium: Browser) -> None:
    viewer, other = world.secret("viewer", "eve", "ml"), world.secret("submitter", "bob", "vision")
    ours = world.secret("submitter", "ann", "ml")
    with chromium.visit(world.url, 390) as visit:
        visit.until("document.activeElement.id === 'token'")
        visit.type("cvy_nonsense")
        visit.press("Enter")
        refused = visit.until("document.querySelector('.sign-in .reason:not([hidden])')?.innerText")
        assert "token" in refused
        visit.type(viewer)
        visit.press("Enter")
        visit.until(READY["/runs"])
        assert "eve (viewer)" in visit.value("document.querySelector('#bar').innerText")
        visit.value("location.reload()")
        visit.until(READY["/runs"])
        for token, actions in ((viewer, []), (other, []), (ours, ["pause", "scale", "cancel"])):
            visit.value(f"location.hash = '#token={token}&view=/runs/{world.main}'")
            who = {viewer: "eve", other: "bob", ours: "ann"}[token]
            visit.until(f"document.querySelector('.who')?.innerText.startsWith('{who}')")
            visit.until("document.querySelector('.events li') && document.querySelector('#facts dd')")
            shown = visit.value("[...document.querySelectorAll('[data-action]')].map((e) => e.dataset.action)")
            assert shown == actions, who
        world.tokens.revoke(world.tokens.holder(ours).token_id)
        assert "revoked" in visit.until("document.querySelector('.sign-in .reason:not([hidden])')?.innerText")
        assert visit.value("sessionStorage.length") == 0


def test_a_lost_connection_is_said_and_a_hidden_tab_is_quiet(world: PageWorld, chromium: Browser) -> None:
    with chromium.visit(start(world, f"/runs/{world.main}"), 1440) as visit:
        visit.until(READY["/runs/{main}"])
        visit.press("Tab")
        assert visit.value("document.activeElement.className") == "skip", "the first that the keyboard reaches"
        assert visit.value("document.activeElement.getBoundingClientRect().left") > 0, "and it is seen then"
        visit.press("Enter")
        assert visit.value("document.activeElement.id") == "main"
        visit.press("Tab")
        assert "solid" in visit.value("getComputedStyle(document.activeElement).outlineStyle")

        hide = "Object.defineProperty(document, 'hidden', {{ configurable: true, get: () => {} }}); " + (
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        visit.value(hide.format("true"))
        visit.value("new Promise((done) => setTimeout(done, 300))")
        before = len(visit.requests)
        world.say(0, "said to a hidden tab")
        visit.value("new Promise((done) => setTimeout(done, 2500))")
        assert len(visit.requests) == before
        visit.value(hide.format("false"))
        visit.until("document.querySelector('.log')?.innerText.includes('said to a hidden tab')")
        assert visit.value("document.querySelector('.log').innerText.split('said to a hidden tab').length") == 2
        assert visit.problems == []

        visit.offline(True)
        visit.until("document.querySelector('#banner:not([hidden])')?.innerText.startsWith('Connection lost')")
        visit.offline(False)
        visit.until("document.querySelector('#banner')?.hidden")


def test_an_empty_server_says_what_to_do(world: PageWorld, chromium: Browser) -> None:
    with chromium.visit(start(world, "/runs?state=cancelled", role="viewer", user="ann", team=ANN.team), 390) as visit:
        visit.value("location.hash = '#/runs?state=succeeded'")
        visit.until("document.querySelectorAll('tbody tr').length === 1")
        visit.value("document.querySelector('[type=search]').value = 'no such run'; "
                    "document.querySelector('[type=search]').dispatchEvent(new Event('input'))")  # fmt: skip
        assert "No run is succeeded." in visit.until("document.querySelector('.empty:not([hidden])')?.innerText")
        visit.value("location.hash = '#/runs/no-such-run'")
        assert "no-such-run" in visit.until("document.querySelector('.reason:not([hidden])')?.innerText")
