"""Hugging Face hub: datasets as sources, tokenizers by id. Without a network, an error in seconds."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.atomic_files import write_json
from orchestrator.data.sources.readers import Bad, Item, NoText, pieces, text_of
from orchestrator.data.sources.source_scan import Source
from orchestrator.domain.errors import DataError

HUB_TIMEOUT_S = 4.0

LOCAL_HINT = "check the network (HF_ENDPOINT, proxies), or download it elsewhere and give the local path in the spec"


class HubUnreachable(DataError):
    """There is no way to the hub from here, now."""


def resolve(source: Source, memory: Path, pinned: str | None = None) -> Source:
    """A hub source with the commit it is at, so that a change of the dataset makes a new cache entry. `pinned`: the
    commit to use, regardless of the present one.

    `memory` is a directory where the commit is remembered: if the hub cannot be reached, the last known one is used, so
    that a run resumes on data that is prepared already. Raises DataError if there is none either, or the hub has no
    such dataset.
    """
    if source.spec.hub is None or source.directory is not None:
        return source
    if pinned is not None:
        return replace(source, revision=pinned)
    remembered = memory / f"{hashlib.sha256(source.spec.hub.encode()).hexdigest()[:16]}.json"
    try:
        revision = revision_of("dataset", source.spec.hub)
    except HubUnreachable:
        if not remembered.is_file():
            raise
        return replace(source, revision=str(json.loads(remembered.read_text())["revision"]))
    memory.mkdir(parents=True, exist_ok=True)
    write_json(remembered, {"dataset": source.spec.hub, "revision": revision})
    return replace(source, revision=revision)


def revision_of(kind: str, repository: str, revision: str | None = None) -> str:
    """The commit of a hub repository (`dataset` or `model`). Raises DataError, within seconds."""
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        info = hub.HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=HUB_TIMEOUT_S)
    except HFValidationError as error:
        raise DataError(
            f"{repository!r} is neither a local path nor a hub id", hint=str(error).splitlines()[0]
        ) from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachable(
            f"the {kind} {repository!r} is on the Hugging Face hub, and HF_HUB_OFFLINE is set", hint=LOCAL_HINT
        ) from error
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(
            f"the hub refuses the {kind} {repository!r}: {reason}",
            hint="check the id; a private or gated repository needs HF_TOKEN",
        ) from error
    except Exception as error:
        if not _is_network_error(error):
            raise
        raise HubUnreachable(
            f"the {kind} {repository!r} is on the Hugging Face hub, which cannot be reached: {_short(error)}",
            hint=LOCAL_HINT,
        ) from error
    return str(info.sha)


def _is_network_error(error: BaseException) -> bool:
    """Whether an HTTP client (httpx, httpx2 or requests, by version of huggingface_hub) or the system failed."""
    module = type(error).__module__.split(".")[0]
    return module.startswith(("httpx", "httpcore", "requests", "urllib3")) or isinstance(error, OSError)


def _short(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def read_hub(source: Source) -> Iterator[Item]:
    """The documents of a hub dataset, streamed or downloaded. Raises DataError."""
    rows = iter(_open_dataset(source))
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:
            if not _is_network_error(error):
                raise DataError(f"{source.name}: {_short(error)}") from error
            raise DataError(f"{source.name}: the hub stopped answering: {_short(error)}", hint="run again") from error
        if row is None:
            return
        number += 1
        if number == 1 and source.spec.field not in row:
            from orchestrator.data.sources.tables import no_column

            raise no_column(source.name, source.spec.field, list(row))
        try:
            text = text_of(row, source.spec.field)
        except NoText as error:
            yield Bad(str(error), f"{source.name}:row {number}")
        else:
            yield from pieces(text)


def _open_dataset(source: Source) -> Iterable[Mapping[str, object]]:
    import datasets

    spec = source.spec
    place = str(source.directory) if source.directory else spec.hub
    try:
        rows: Iterable[Mapping[str, object]] = datasets.load_dataset(
            place, spec.config, split=spec.split, streaming=spec.streaming, revision=source.revision
        )
        return rows
    except Exception as error:  # datasets raises builders' own errors of every kind for a wrong name
        if _is_network_error(error) and not isinstance(error, FileNotFoundError):
            raise DataError(f"{source.name}: the hub cannot be reached: {_short(error)}", hint=LOCAL_HINT) from error
        raise DataError(
            f"the dataset {source.name} cannot be loaded: {_short(error)}",
            hint="check `hub`, `config` and `split`; a slice such as train[:10%] needs `streaming: false`",
        ) from error


def download_tokenizer(repository: str, revision: str | None) -> Path:
    """A local directory with the tokenizer files of a hub model: downloaded, or from the cache if the hub cannot be
    reached. Raises DataError."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    local = False
    try:
        revision_of("model", repository, revision)
    except HubUnreachable:
        if not _cached(repository, revision):
            raise
        local = True
    found = None
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        try:
            path = hub.hf_hub_download(
                repository, name, revision=revision, local_files_only=local, etag_timeout=HUB_TIMEOUT_S
            )
        except EntryNotFoundError:  # the two besides tokenizer.json may be missing
            continue
        found = found or Path(path)
    if found is None or found.name != "tokenizer.json":
        raise DataError(f"the hub model {repository!r} has no tokenizer.json", hint="name a tokenizer that has one")
    return found.parent


def commit_of_model(repository: str, revision: str | None) -> str | None:
    """The commit that a model of the hub is at, or the one in the local cache if the hub cannot be reached; None if
    neither is known."""
    import huggingface_hub as hub

    try:
        return revision_of("model", repository, revision)
    except DataError:
        for name in ("config.json", "tokenizer.json"):
            found = hub.try_to_load_from_cache(repository, name, revision=revision)
            if isinstance(found, str):
                return Path(found).parent.name
        return None


def _cached(repository: str, revision: str | None) -> bool:
    import huggingface_hub as hub

    return isinstance(hub.try_to_load_from_cache(repository, "tokenizer.json", revision=revision), str)
