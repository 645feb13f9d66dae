"""Routes of files that clients upload beside a job."""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from orchestrator.api.api_parts import ApiParts, ResponseTable, Submitter, errors
from orchestrator.api.error_answers import refusal
from orchestrator.domain.errors import UsageError
from orchestrator.store.uploads.file_store import Upload
from orchestrator.wire.request_messages import FileView, MissingFiles

Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the content, in hexadecimal digits.")]


class FileRoutes:
    """`/files`."""

    def __init__(self, parts: ApiParts) -> None:
        self._files, self._settings = parts.files, parts.settings

    def router(self) -> APIRouter:
        """With all routes."""
        router = APIRouter(tags=["files"])
        body = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {
            "type": "string", "format": "binary"}}}}}  # fmt: skip
        responses: ResponseTable = errors(408, 413)
        responses[200] = {"model": FileView, "description": "The server had the file already."}
        router.add_api_route(
            "/files/{sha256}", self.put, methods=["PUT"], status_code=201, response_model=FileView,
            openapi_extra=body, responses=responses,
        )  # fmt: skip
        router.add_api_route(
            "/missing-files", self.missing, methods=["POST"], responses=errors(400, 408, 413)
        )  # fmt: skip
        return router

    def missing(self, body: MissingFiles, caller: Submitter) -> MissingFiles:
        """Which of these files the server does not have."""
        return MissingFiles(sha256=self._files.missing(body.sha256))

    async def put(self, request: Request, response: Response, sha256: Sha256, caller: Submitter) -> Response:
        """Store a file under the SHA-256 of its content."""
        limit = self._settings.max_file_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            return _too_large(limit)
        upload = await run_in_threadpool(self._files.begin, sha256)
        had = await run_in_threadpool(self._files.size_bytes, sha256) is not None
        try:
            refused = await self._receive(request, upload)
            if refused is not None:
                return refused
            stored = await run_in_threadpool(upload.finish)
        finally:
            await run_in_threadpool(upload.abandon)
        view = FileView(sha256=stored.sha256, size_bytes=stored.size_bytes, existing=had)
        return JSONResponse(view.model_dump(mode="json"), 200 if had else 201)

    async def _receive(self, request: Request, upload: Upload) -> Response | None:
        """All of the body; or why it is refused."""
        deadline = time.monotonic() + self._settings.upload_wait_s
        pieces = request.stream()
        while True:
            wait_s = min(self._settings.body_wait_s, max(0.0, deadline - time.monotonic()))
            try:
                piece = await asyncio.wait_for(anext(pieces, None), wait_s)
            except TimeoutError:
                return refusal(
                    408, "the file was cut off", "upload it again", headers={"Connection": "close"}
                ).response()
            except ClientDisconnect:
                raise UsageError("the file was cut off", "upload it again") from None
            if piece is None:
                return None
            if not await run_in_threadpool(upload.write, piece):
                return _too_large(self._settings.max_file_bytes)


def _too_large(limit: int) -> Response:
    return refusal(
        413,
        f"the file is larger than {limit >> 20} MiB",
        "put it on storage that the cluster reads, and name its path there in the job",
        headers={"Connection": "close"},
    ).response()
