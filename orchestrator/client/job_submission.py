"""A job file with its files to a server."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.client.api_errors import ApiError
from orchestrator.client.convoy_client import ConvoyClient
from orchestrator.client.job_uploads import LocalFile, UploadPlan, plan_uploads, read_content
from orchestrator.json_values import JsonObject, JsonShapeError, integer, optional, text
from orchestrator.spec.loading.load import read_source
from orchestrator.spec.spec_errors import Place, Problem, SpecError
from orchestrator.wire.api_version import INVALID_JOB
from orchestrator.wire.run_messages import Submission, SubmitAnswer
from orchestrator.wire.wire_base import ErrorBody


@dataclass(frozen=True)
class SubmitChoice:
    """What a person chooses beside the job file."""

    overrides: tuple[str, ...] = ()
    name: str | None = None
    queue: str | None = None
    priority: str | None = None
    after: tuple[str, ...] = ()
    dry_run: bool = False
    key: str | None = None
    """Idempotency key."""


Uploading = Callable[[LocalFile, bool], None]
"""Called for each file: whether it is sent, or the server has it already."""


def submit_job(client: ConvoyClient, job: Path, choice: SubmitChoice, uploading: Uploading) -> SubmitAnswer:
    """Upload what is missing, and submit. Raises SpecError if the file cannot be read or is wrong, UsageError,
    ApiError, UnreachableError."""
    source = read_source(job)
    plan = plan_uploads(source, job.absolute().parent, client.address.is_here)
    digests = upload(client, plan, uploading)
    kept = {key: path for key, path in plan.in_place.items() if not _is_set(key, choice.overrides)}
    in_place = [f"{key}={json.dumps(path)}" for key, path in kept.items()]
    submission = Submission(
        spec=source, file_name=job.name, overrides=[*in_place, *choice.overrides], name=choice.name,
        queue=choice.queue, priority=choice.priority, after=list(choice.after), files=digests, dry_run=choice.dry_run,
    )  # fmt: skip
    try:
        return client.submit(submission, choice.key)
    except ApiError as error:
        problems = _problems_of(error.body, job)
        if problems:
            raise SpecError(problems) from None
        raise


def _problems_of(body: ErrorBody, job: Path) -> tuple[Problem, ...]:
    """The mistakes that a server has found in a job, as `convoy validate` reports them; none if it is another error."""
    problems = body.details.get("problems")
    if body.code != INVALID_JOB or not isinstance(problems, list):
        return ()
    found = []
    for each in problems:
        fields: JsonObject = each if isinstance(each, dict) else {}
        try:
            file, line, column = text(fields, "file"), integer(fields, "line"), integer(fields, "column")
            place = Place(str(job) if file == job.name else file, line, column)
            found.append(Problem(place, text(fields, "message"), optional(text, fields, "hint")))
        except JsonShapeError:
            continue
    return tuple(found)


def upload(client: ConvoyClient, plan: UploadPlan, uploading: Uploading) -> dict[str, str]:
    """Send the files that the server does not have; SHA-256 by name."""
    if not plan.files:
        return {}
    digests = {each.name: read_content(each)[0] for each in plan.files}
    missing = set(client.missing_files(sorted(set(digests.values()))))
    for each in plan.files:
        sends = digests[each.name] in missing
        uploading(each, sends)
        if sends:
            digests[each.name], content = read_content(each)
            client.put_file(digests[each.name], content)
            missing.discard(digests[each.name])
    return digests


def _is_set(key: str, overrides: Sequence[str]) -> bool:
    """Whether an override gives this value, or what it is in."""
    given = [override.partition("=")[0].strip() for override in overrides]
    return any(key == each or key.startswith(f"{each}.") for each in given)
