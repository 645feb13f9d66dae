"""`data`: which fields go with which kind of source."""

import re
from collections.abc import Iterator

from orchestrator.spec.checks.partial_job import Unavailable, View
from orchestrator.spec.spec_errors import Path, Problem, dotted

_HUB_ID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._]{0,95}(/[A-Za-z0-9][-A-Za-z0-9._]{0,95})?")


def _sources(view: View) -> list[Path]:
    return view.items("data.sources") + view.items("data.validation.sources")


def files_or_hub(view: View) -> Iterator[Problem]:
    """Each source is files or a hub dataset."""
    for source in _sources(view):
        files, hub = view.given((*source, "files")), view.given((*source, "hub"))
        if files and hub:
            hint = "make two sources of them, or remove one"
            message = f"`{dotted(source)}` has both `files` and `hub`, expected one"
            yield view.problem((*source, "hub"), message, hint, key=True)
        elif not files and not hub and isinstance(view.section(source), dict):
            hint = "for example `files: ['corpus/**/*.txt']`"
            yield view.problem(source, f"`{dotted(source)}` has neither `files` nor `hub`, expected one", hint)


def fields_of_the_other_kind(view: View) -> Iterator[Problem]:
    """Fields that only a hub dataset, or only files, have."""
    for source in _sources(view):
        files, hub = view.given((*source, "files")), view.given((*source, "hub"))
        if files == hub:
            continue
        names = ("config", "split", "streaming") if files else ("exclude", "format")
        kind, other = ("files", "hub") if files else ("hub", "files")
        for name in names:
            if view.given((*source, name)) and _changed(view, (*source, name)):
                message = f"`{dotted((*source, name))}` goes with `{other}` only, this source has `{kind}`"
                yield view.problem((*source, name), message, "remove it", key=True)


def _changed(view: View, path: Path) -> bool:
    try:
        return view.changed(path)
    except Unavailable:
        return False


def hub_ids(view: View) -> Iterator[Problem]:
    """A hub id looks like one; a slice of a split cannot be streamed."""
    for source in _sources(view):
        try:
            hub, split = view.optional_text((*source, "hub")), view.text((*source, "split"))
            streaming = view.get((*source, "streaming"))
        except Unavailable:
            continue
        if hub is None:
            continue
        if not _HUB_ID.fullmatch(hub):
            hint = "a local directory or file goes under `files`" if "/" in hub or "." in hub else None
            message = f"`{dotted((*source, 'hub'))}` is `{hub}`, expected a dataset id such as `owner/name`"
            yield view.problem((*source, "hub"), message, hint)
        if streaming and "[" in split:
            message = f"`{dotted((*source, 'split'))}` is the slice `{split}`, which cannot be streamed"
            yield view.problem((*source, "split"), message, "set `streaming: false`, or take the whole split")


def weights_all_or_none(view: View) -> Iterator[Problem]:
    """Either every source has a weight or none has."""
    sources = view.items("data.sources")
    without = [source for source in sources if not view.given((*source, "weight"))]
    if without and len(without) < len(sources):
        for source in without:
            message = f"`{dotted(source)}` has no `weight`, other sources have one; expected all or none"
            yield view.problem(source, message, "add `weight: 1.0`, or remove the other weights")
    for source in view.items("data.validation.sources"):
        if view.given((*source, "weight")):
            message = f"`{dotted((*source, 'weight'))}` has no effect: validation reads its sources whole"
            yield view.problem((*source, "weight"), message, "remove it", key=True)


def validation_kind(view: View) -> Iterator[Problem]:
    """A share of the corpus, or sources of its own."""
    if not isinstance(view.section("data.validation"), dict):
        return
    fraction, sources = view.given("data.validation.fraction"), view.given("data.validation.sources")
    if fraction and sources:
        message = "`data.validation` has both `fraction` and `sources`, expected one"
        yield view.problem("data.validation.sources", message, "remove one of the two", key=True)
    elif not fraction and not sources:
        message = "`data.validation` has neither `fraction` nor `sources`, expected one"
        yield view.problem("data.validation", message, "for example `fraction: 0.01`", key=True)


def bad_record_rule(view: View) -> Iterator[Problem]:
    """A share of bad records is tolerated only if they are skipped."""
    if view.get("data.bad_records") == "error" and view.changed("data.max_bad_fraction"):
        message = "`data.max_bad_fraction` goes with `bad_records: skip` only"
        yield view.problem("data.max_bad_fraction", message, "remove it: the first bad record stops the job", key=True)


CHECKS = (files_or_hub, fields_of_the_other_kind, hub_ids, weights_all_or_none, validation_kind, bad_record_rule)
