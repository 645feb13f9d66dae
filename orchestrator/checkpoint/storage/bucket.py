"""Checkpoints in a bucket: S3 and what speaks it, Google Cloud Storage, Azure Blob Storage.

Through obstore (the Rust crate `object_store` of Apache Arrow), not `pyarrow.fs` or fsspec. Measured against an S3
server: after an error in the middle of a stream pyarrow completes the upload all the same and leaves a truncated
object (its streams have `close` but no `abort`), while obstore aborts it. pyarrow also has no time limits for Azure
and gives every error as an OSError with prose; obstore bounds every request and its retries, and has typed errors.
fsspec would be three libraries with three ways to set limits.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from orchestrator.checkpoint.storage.storage import StorageError, StorageFault, StorageLimits, checked, counted
from orchestrator.domain.errors import UsageError
from orchestrator.domain.tick import Tick, no_tick

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode
    from obstore.store import ClientConfig, RetryConfig

_PART_BYTES = 8 << 20
_MAX_PARTS = 9000  # S3 allows 10,000
_CONCURRENT_PARTS = 4
"""Parts under way at once: what an upload holds in memory is this many parts."""

_CREDENTIALS: dict[str, tuple[tuple[str, ...], ...]] = {
    "s3": (
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
        ("AWS_METADATA_ENDPOINT",),  # asks the instance, but only where the user says so: elsewhere it is a long wait
    ),
    "gs": (
        ("GOOGLE_APPLICATION_CREDENTIALS",),
        ("GOOGLE_SERVICE_ACCOUNT",),
        ("GOOGLE_SERVICE_ACCOUNT_KEY",),
        ("GCE_METADATA_HOST",),
    ),
    "az": (
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_SAS_TOKEN"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_CLIENT_ID"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "IDENTITY_ENDPOINT"),
    ),
}
"""Sets of variables of which one must be there, by scheme."""

_STATUS = r"status (?:code|client error|server error)\W+"
"""Before the status of an answer. The same digits may be part of a time, a port or a name."""
_WORDS: tuple[tuple[StorageFault, str], ...] = (
    (StorageFault.MISSING, r"NoSuchBucket|ContainerNotFound|bucket does not exist"),
    (StorageFault.FULL, rf"QuotaExceeded|StorageFull|EntityTooLarge|{_STATUS}507\b"),
    (StorageFault.DENIED, rf"{_STATUS}40[13]\b|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|AccessDenied"),
    (
        StorageFault.UNREACHABLE,
        rf"error sending request|time[d ]*out|{_STATUS}(?:5\d\d|429)\b|onnection|dns|error decoding|retries",
    ),
)
"""Faults by the text of errors that have no type; the first match counts."""


class BucketStorage:
    """A prefix of a bucket. See `Storage`."""

    def __init__(self, scheme: str, bucket: str, prefix: str, limits: StorageLimits) -> None:
        """Raises UsageError if the environment holds no credentials, or invalid ones."""
        require_credentials(scheme, os.environ)
        self._url = "/".join(part for part in (f"{scheme}://{bucket}", prefix) if part)
        options: ClientConfig = {
            "connect_timeout": timedelta(seconds=limits.connect_s),
            "timeout": timedelta(seconds=limits.request_s),
        }
        retry: RetryConfig = {
            "max_retries": limits.retries,
            "retry_timeout": timedelta(seconds=limits.retry_s),
        }
        at = prefix or None
        try:
            self._store: AzureStore | GCSStore | S3Store
            if scheme == "s3":
                endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
                # Plain HTTP to an endpoint that was asked for by that name, never as a fallback.
                options["allow_http"] = endpoint.startswith("http://")
                self._store = S3Store(bucket, prefix=at, client_options=options, retry_config=retry)
            elif scheme == "gs":
                self._store = GCSStore(bucket, prefix=at, client_options=options, retry_config=retry)
            else:
                options["allow_http"] = os.environ.get("AZURE_STORAGE_USE_EMULATOR", "").lower() == "true"
                self._store = AzureStore(bucket, prefix=at, client_options=options, retry_config=retry)
        except (BaseError, OSError, ValueError) as error:
            raise UsageError(f"{self._url} cannot be used: {_brief(error)}") from error

    def place(self, name: str = "") -> str:
        return f"{self._url}/{name}" if name else self._url

    def names(self) -> list[str]:
        with _translated(self._url):
            found = obstore.list_with_delimiter(self._store)
        return sorted(path.strip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def sizes(self, name: str) -> dict[str, int]:
        with _translated(self.place(name)):
            metas = [meta for page in obstore.list(self._store, prefix=checked(name)) for meta in page]
        return {str(meta["path"]).rpartition("/")[2]: int(meta["size"]) for meta in metas}

    def read(self, name: str, file: str) -> bytes:
        key = _key(name, file)
        with _translated(self.place(key)):
            return bytes(obstore.get(self._store, key).bytes())

    def read_into(self, name: str, file: str, offset: int, out: memoryview) -> None:
        key = _key(name, file)
        with _translated(self.place(key)):
            data = memoryview(obstore.get_range(self._store, key, start=offset, length=len(out)))
        if len(data) != len(out):
            raise StorageError(f"{self.place(key)} ends at byte {offset + len(data)}", StorageFault.OTHER)
        out[:] = data

    def put(self, name: str, file: str, parts: Iterable[bytes | memoryview], size_bytes: int) -> None:
        key = _key(name, file)
        part_bytes = max(_PART_BYTES, -(-size_bytes // _MAX_PARTS))
        with _translated(self.place(key)):
            obstore.put(
                self._store,
                key,
                counted(parts, size_bytes, self.place(key)),
                use_multipart=size_bytes > part_bytes,
                chunk_size=part_bytes,
                max_concurrency=_CONCURRENT_PARTS,
            )

    def read_version(self, name: str, file: str) -> tuple[bytes, str]:
        key = _key(name, file)
        with _translated(self.place(key)):
            found = obstore.get(self._store, key)
            return bytes(found.bytes()), _version_of(found.meta)

    def put_if(self, name: str, file: str, data: bytes, version: str | None) -> bool:
        key = _key(name, file)
        mode: PutMode = "create"
        if version is not None:
            mode = json.loads(version)
        with _translated(self.place(key)):
            try:
                obstore.put(self._store, key, data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                # The answer to a first attempt may have been lost, and the library has tried again: then it is ours.
                try:
                    return bytes(obstore.get(self._store, key).bytes()) == data
                except (NotFoundError, FileNotFoundError):
                    return False
            except (NotFoundError, FileNotFoundError):
                return False
        return True

    def remove_file(self, name: str, file: str) -> None:
        self._delete([_key(name, file)])

    def remove(self, name: str, first: str, tick: Tick = no_tick) -> None:
        self._delete([_key(name, first)])
        self._delete([f"{name}/{file}" for file in self.sizes(name)], tick)

    def _delete(self, keys: list[str], tick: Tick = no_tick) -> None:
        for key in keys:  # one by one: S3's request for many is not spoken by all that speak S3
            try:
                with _translated(self.place(key)):
                    obstore.delete(self._store, key)
            except StorageError as error:
                if error.fault is not StorageFault.MISSING:
                    raise
            tick()


def _version_of(meta: "ObjectMeta") -> str:
    """The `mode` of a conditional `obstore.put`, as JSON. Stores identify versions by tag, by number, or by both."""
    known = {"e_tag": meta["e_tag"], "version": meta["version"]}
    return json.dumps({key: value for key, value in known.items() if value is not None})


def _key(name: str, file: str) -> str:
    return f"{checked(name)}/{checked(file)}"


def require_credentials(scheme: str, env: Mapping[str, str]) -> None:
    """Raise UsageError unless `env` holds one of the sets of variables that give access."""
    sets = _CREDENTIALS[scheme]
    if any(all(env.get(variable) for variable in wanted) for wanted in sets):
        return
    listed = "; or ".join(" and ".join(wanted) for wanted in sets)
    raise UsageError(f"there are no credentials for {scheme}:// in the environment", hint=f"export {listed}")


@contextlib.contextmanager
def _translated(place: str) -> Iterator[None]:
    """obstore's errors in the block as StorageErrors that name `place`."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise StorageError(f"{place}: {_brief(error)}", bucket_fault(error)) from error


def bucket_fault(error: Exception) -> StorageFault:
    """What an error of obstore means."""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
        return StorageFault.DENIED
    if isinstance(error, NotFoundError | FileNotFoundError):
        return StorageFault.MISSING
    text = str(error)
    return next((fault for fault, words in _WORDS if re.search(words, text)), StorageFault.OTHER)


def _brief(error: Exception) -> str:
    """The first line of the library's message, without the queries of URLs, which may contain signatures."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"\?[^\s>)]*", "", re.sub(r"<\?xml.*", "", lines[0])).strip(" :")[:300]
