"""The documents hold: links lead somewhere, commands parse, jobs are valid, nothing is out of reach."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from orchestrator.cli.main import cli
from orchestrator.domain.events import EVENT_TYPES
from orchestrator.domain.policy.scorecard import DrillFault
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.fields import models_of
from orchestrator.spec.loading.load import load_job, load_text

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
INDEX = ROOT / "docs" / "README.md"
OTHERS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "monitoring" / "README.md")
DOCUMENTS = sorted([*OTHERS, *(ROOT / "docs").glob("*.md")])
MOST_README_LINES = 175
MOST_DOCS_FILES = 16
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)", re.DOTALL)
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
FOLDERS = ("jobs", "docs", "tests", "orchestrator", "monitoring")
CARRIES_JOB = ("run", "drill", "validate", "data prepare")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def prose_of(path: Path) -> str:
    """Without fenced blocks."""
    return FENCE.sub("", text_of(path))


def links_of(path: Path) -> list[str]:
    """Targets of the links to files of this checkout."""
    targets = LINK.findall(prose_of(path))
    return [target for target in targets if not target.startswith(("http://", "https://", "mailto:"))]


def anchors_of(path: Path) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@dataclass(frozen=True)
class Shown:
    """A command as a document shows it. `whole`: in a console block, with all that it needs."""

    text: str
    whole: bool


def commands_of(path: Path) -> Iterator[Shown]:
    """Every `convoy ...`, `python ...`, `torchrun ...` and `make ...` of a document."""
    starts = ("convoy ", "python ", "torchrun ", "make ")
    for _, block in FENCE.findall(text_of(path)):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.startswith("$ "):
                yield Shown(re.sub(r"\s+#.*", "", line[2:]), whole=True)
    for span in CODE.findall(prose_of(path)):
        if span.startswith(starts):
            yield Shown(" ".join(span.split()), whole=False)


def words_of(command: str) -> list[str]:
    """Its words up to a pipe or a redirection; what stands in brackets may be given."""
    text = re.sub(r"\[([^\]]*)\]", r"\1", command)
    words: list[str] = []
    for word in shlex.split(text):
        if word in ("|", ">", "&&"):
            break
        words.append("1" if word == "N" else word)
    return words


def parse(command: str, whole: bool) -> tuple[str, click.Context]:
    """As click does it, without running it: the name of the command and its context. Raises click.UsageError."""
    words, found, path = words_of(command)[1:], cli, []
    while isinstance(found, click.Group) and words:
        if words[0] == "COMMAND":
            break
        for part in words[0].split("|"):  # list|verify|prune
            inner = found.get_command(click.Context(found), part)
            if inner is None:
                raise click.UsageError(f"there is no command {part!r}")
        path.append(words.pop(0))
        found = inner
    context = click.Context(found, info_name=path[-1] if path else "convoy")
    if not isinstance(found, click.Group):
        context.resilient_parsing = not whole  # then what is required may be left out
        known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in words:
            option = word.partition("=")[0]
            if word.startswith("-") and option not in known | {"-h", "--help"}:
                raise click.UsageError(f"there is no option {option}")
        found.parse_args(context, list(words))
    return " ".join(path), context


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in links_of(document):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{name(document)}: {target}"
        assert file.is_relative_to(ROOT)
        if anchor and file.suffix == ".md":
            assert anchor in anchors_of(file), f"{name(document)}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_commands_exist_with_their_options(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for shown in commands_of(document):
        where = f"{name(document)}: {shown.text}"
        words = words_of(shown.text)
        if words[0] == "convoy":
            try:
                command, context = parse(shown.text, shown.whole)
            except click.UsageError as error:
                pytest.fail(f"{where}: {error.format_message()}")
            job = context.params.get("job") or context.params.get("file")
            if command in CARRIES_JOB and job and (ROOT / job).is_file():
                load_job(ROOT / job, context.params["overrides"])  # SpecError: an override does not fit
        elif words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, where
        elif "-m" in words:
            module = words[words.index("-m") + 1]
            assert module == "pytest" or importlib.util.find_spec(module) is not None, where


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_paths_exist(document: Path) -> None:
    for span in CODE.findall(text_of(document)):
        path = span.split("::")[0]
        if path.partition("/")[0] in FOLDERS and re.fullmatch(r"[\w./-]+", path) and "/" in path:
            assert (ROOT / path).exists(), f"{name(document)}: {span}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_jobs_are_valid(document: Path) -> None:
    for language, block in FENCE.findall(text_of(document)):
        if language == "yaml" and re.search(r"^name:", block, re.MULTILINE):
            load_text(block, name(document))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_fields_of_the_job_exist(document: Path) -> None:
    events = {body_type.KIND for body_type in EVENT_TYPES}
    for span in CODE.findall(prose_of(document)):
        path = span.partition(":")[0].removesuffix("[]").split(".")
        if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", ".".join(path)) or path[0] not in JobSpec.model_fields:
            continue
        if ".".join(path) not in events and path[-1] not in ("json", "md", "safetensors"):
            assert is_field(JobSpec, path), f"{name(document)}: {span}"


def is_field(model: type[BaseModel], path: list[str]) -> bool:
    """Whether a dotted path names a field; what is below a mapping of free keys is not looked at."""
    info = model.model_fields.get(path[0])
    if info is None:
        return False
    inner = [part for part, _ in models_of(info.annotation)]
    return len(path) == 1 or not inner or any(is_field(part, path[1:]) for part in inner)


def test_every_document_can_be_reached_from_the_index() -> None:
    reached, todo = set[Path](), [INDEX]
    while todo:
        document = todo.pop()
        if document in reached:
            continue
        reached.add(document)
        files = [(document.parent / target.partition("#")[0]).resolve() for target in links_of(document)]
        todo += [file for file in files if file.suffix == ".md" and file.is_file()]
    assert {path for path in DOCUMENTS if path.parent == INDEX.parent} <= reached
    assert INDEX.resolve() in {(ROOT / target).resolve() for target in links_of(ROOT / "README.md")}


def test_the_readme_is_short_and_its_figures_are_those_of_the_benchmarks() -> None:
    readme, benchmarks = text_of(ROOT / "README.md"), text_of(ROOT / "docs" / "benchmarks.md")
    assert readme.count("\n") <= MOST_README_LINES
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| [^|:]+: ([^|]+) \| ([\d.]+) \|$", readme, re.MULTILINE)
    assert len(rows) >= 5
    for figures in rows:
        wanted = [figure.strip() for figure in figures]
        assert any(
            all(re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.])", line) for figure in wanted)
            for line in benchmarks.splitlines()
        ), f"docs/benchmarks.md has no row with {wanted}"


def test_every_fault_of_a_drill_is_explained() -> None:
    text = text_of(ROOT / "docs" / "reliability.md")
    assert [fault.value for fault in DrillFault if f"`{fault.value}`" not in text] == []


def test_the_folder_stays_small() -> None:
    assert len(list((ROOT / "docs").iterdir())) <= MOST_DOCS_FILES
