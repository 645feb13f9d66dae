"""The page at `/`: static files of the package. They hold no data: what the page shows it requests from the API, with
the token of the person who looks at it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.wire.api_version import API_VERSION

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The browser runs no script but the page's own files, makes no markup from text, and connects to this server alone
(https://www.w3.org/TR/CSP3/, https://www.w3.org/TR/trusted-types/)."""
INDEX = "index.html"
FOREVER = "public, max-age=31536000, immutable"
"""The address of a file has the hash of all files: another content has another address."""
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_VERSION_DIGITS = 16


@dataclass(frozen=True)
class PageFile:
    """A file as it is served."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """Of its content."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


class PageRoutes:
    """`/`, and `/page/VERSION/...`. The files are read once; a path that is not among them does not exist."""

    def __init__(self) -> None:
        found = {name: _file(name, source.read_bytes()) for name, source in _sources().items()}
        index = found.pop(INDEX)
        self.version = _version_of({INDEX: index, **found})
        """Hash of all files."""
        self._files: Mapping[str, PageFile] = found
        content = index.content.replace(b"{version}", self.version.encode()).replace(b"{api}", API_VERSION.encode())
        self._index = PageFile(content, index.media_type)

    @property
    def names(self) -> list[str]:
        """Paths of the files below `/page/VERSION/`."""
        return sorted(self._files)

    def routes(self) -> list[Route]:
        """For the application; they are no part of the API, and need no token."""
        return [
            Route("/", self.index, methods=["GET"]),
            Route("/page/{version}/{name:path}", self.file, methods=["GET"]),
        ]

    async def index(self, request: Request) -> Response:
        """The page itself: asked for again each time, since it names the version of the other files."""
        return _answer(request, self._index, "no-cache")

    async def file(self, request: Request) -> Response:
        """A script, a style sheet, a picture."""
        found = self._files.get(request.path_params["name"])
        if found is None or request.path_params["version"] != self.version:
            raise HTTPException(404)
        return _answer(request, found, FOREVER)


def _sources() -> dict[str, Traversable]:
    """Files by path. The style of reports is the page's too."""
    page = files("orchestrator.api").joinpath("page")
    found = {"report.css": files("orchestrator.report").joinpath("report.css")}
    for entry in page.iterdir():
        if entry.is_dir():
            found |= {f"{entry.name}/{inner.name}": inner for inner in entry.iterdir() if inner.is_file()}
        else:
            found[entry.name] = entry
    return found


def _file(name: str, content: bytes) -> PageFile:
    return PageFile(content, MEDIA_TYPES[name.rpartition(".")[2]])


def _version_of(found: Mapping[str, PageFile]) -> str:
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name}\0{len(found[name].content)}\0".encode() + found[name].content)
    return digest.hexdigest()[:_VERSION_DIGITS]


def _answer(request: Request, file: PageFile, cache: str) -> Response:
    headers = {
        "ETag": file.etag,
        "Cache-Control": cache,
        "Content-Security-Policy": POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
