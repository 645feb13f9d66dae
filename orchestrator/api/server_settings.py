"""What an operator decides about a server: flags, then `CONVOY_*`, then a config file, then the defaults."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from orchestrator.domain.errors import UsageError
from orchestrator.domain.queue.queue_states import FINAL, QueueState
from orchestrator.json_values import JsonValue
from orchestrator.metrics.metrics_endpoint import is_loopback
from orchestrator.spec.loading.load import read_source
from orchestrator.spec.loading.yaml_source import MapNode, parse_yaml, place_of, to_value
from orchestrator.spec.spec_base import SpecModel
from orchestrator.spec.spec_errors import Place, Problem, SpecError

DEFAULT_LISTEN = "127.0.0.1:8470"
CONFIG_FILE = "config.yaml"
"""Below `$CONVOY_HOME/server/`; read if `--config` names no other."""
PREFIX = "CONVOY_SERVER_"
"""Of the environment variables: `CONVOY_SERVER_LISTEN`, `CONVOY_SERVER_TLS_CERTIFICATE`, ..."""
_Amounts = dict[str, Annotated[float, Field(ge=0)]]


class QueueSetting(SpecModel):
    """One queue's part of the cluster."""

    weight: Annotated[float, Field(gt=0, strict=False)] = 1.0
    """Of its share of what is contended."""

    quota: _Amounts = Field(default_factory=dict)
    """What it always gets, by Ray's resource names: `{GPU: 8}`."""

    limit: _Amounts = Field(default_factory=dict)
    """What its runs never exceed together."""


class WebhookSetting(SpecModel):
    """A URL that receives changes of runs: JSON by POST, with the signature of Standard Webhooks."""

    url: str = Field(pattern=r"^https?://")
    """Where to."""

    secret_file: str
    """File with the key of the signature, at least 24 bytes, that only its owner may read."""

    states: list[str] = Field(default_factory=lambda: [state.value for state in sorted(FINAL)])
    """A message for each run that comes into one of these states of the queue. Default: those in which it has ended."""


class ServerConfig(SpecModel):
    """The config file. Every field but `queues` and `webhooks` is also a flag of `convoy server start`, and a
    variable."""

    listen: str = DEFAULT_LISTEN
    """`HOST:PORT`. Port 0: a free one."""

    tls_certificate: str | None = None
    """PEM file with the certificate chain."""

    tls_key: str | None = None
    """PEM file with its key."""

    behind_proxy: bool = False
    """A reverse proxy in front of the server terminates TLS. Required to listen beyond loopback without TLS."""

    address: str | None = None
    """`HOST:PORT` of the Ray cluster that runs train on. Default: the server starts a local one and keeps it."""

    nodes: int = Field(default=1, ge=1, le=64)
    """Nodes of the local cluster."""

    cpus_per_node: float | None = Field(default=None, gt=0, strict=False)
    """CPUs that each local node offers. Default: the machine's, divided by the nodes."""

    storage: str | None = None
    """Default of `checkpoint.storage` for jobs that have none."""

    paths: list[str] | None = None
    """Directories of the server's machine that jobs may use. Default: all if the server listens on loopback alone,
    else none."""

    variables: list[str] = Field(default_factory=list)
    """Environment variables of the server that jobs may name as `${NAME}`, and that drivers get. A name may end in
    `*`."""

    queues: dict[str, QueueSetting] = Field(default_factory=dict)
    """Queues by name. `default` exists always."""

    webhooks: list[WebhookSetting] = Field(default_factory=list, max_length=10)
    """URLs that get a message when runs change."""


@dataclass(frozen=True)
class ServerSettings:
    """The config, checked."""

    home: Path
    host: str
    port: int
    tls: tuple[Path, Path] | None
    """Certificate and key."""
    config: ServerConfig

    @property
    def folder(self) -> Path:
        """All files of the server."""
        return self.home.absolute() / "server"

    @property
    def loopback(self) -> bool:
        """Only this machine reaches it."""
        return is_loopback(self.host)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Directories that jobs may use."""
        if self.config.paths is None:
            return (Path("/"),) if self.loopback else ()
        return tuple(Path(path).expanduser().absolute() for path in self.config.paths)

    def url(self, port: int) -> str:
        """For clients on this machine, at the port that it listens on."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "localhost") else "::1" if self.host == "::" else self.host
        return f"{'https' if self.tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def read_settings(
    home: Path, config_file: Path | None, environ: Mapping[str, str], flags: Mapping[str, JsonValue]
) -> ServerSettings:
    """The settings of a server. `flags`: by name of the field; None: not given. Raises SpecError with the place in the
    file, UsageError."""
    file = config_file or home.absolute() / "server" / CONFIG_FILE
    values = _from_file(file) if config_file is not None or file.exists() else {}
    values = {**values, **from_environment(environ), **{key: each for key, each in flags.items() if each is not None}}
    try:
        config = ServerConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(
            f"the setting {'.'.join(map(str, first['loc']))} is wrong: {first['msg']}",
            "see `convoy server start --help`",
        ) from None
    return checked(home, config)


def from_environment(environ: Mapping[str, str]) -> dict[str, JsonValue]:
    """The settings in `CONVOY_SERVER_*`. Raises UsageError for a value that does not fit. Pure."""
    found: dict[str, JsonValue] = {}
    for name in ServerConfig.model_fields:
        text = environ.get(PREFIX + name.upper())
        if text is None or name in ("queues", "webhooks"):
            continue
        try:
            found[name] = _typed(name, text)
        except ValueError:
            raise UsageError(
                f"{PREFIX}{name.upper()}={text!r} does not fit", "see `convoy server start --help`"
            ) from None
    return found


def _typed(name: str, text: str) -> JsonValue:
    if name == "behind_proxy":
        return {"1": True, "true": True, "0": False, "false": False}.get(text.lower(), text)
    if name == "nodes":
        return int(text)
    if name == "cpus_per_node":
        return float(text)
    return [part for part in text.split(os.pathsep) if part] if name in ("paths", "variables") else text


def checked(home: Path, config: ServerConfig) -> ServerSettings:
    """Raises UsageError if the server would be reachable without protection, or files are missing."""
    host, separator, port = config.listen.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535 or not host:
        raise UsageError(f"listen: {config.listen!r} is no HOST:PORT", f"for example {DEFAULT_LISTEN}")
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise UsageError("TLS needs both a certificate and a key", "--tls-certificate FILE --tls-key FILE")
    tls = None
    if config.tls_certificate is not None and config.tls_key is not None:
        tls = (Path(config.tls_certificate).absolute(), Path(config.tls_key).absolute())
        for path in tls:
            if not os.access(path, os.R_OK):
                raise UsageError(f"the TLS file {path} cannot be read")
    for webhook in config.webhooks:
        unknown = [state for state in webhook.states if state not in list(QueueState)]
        if unknown:
            raise UsageError(f"webhooks: {unknown[0]!r} is no state of a run", f"one of {', '.join(QueueState)}")
    host = host.strip("[]")
    if not is_loopback(host) and tls is None and not config.behind_proxy:
        raise UsageError(
            f"{config.listen} can be reached from other machines, and tokens would travel in the clear",
            "give --tls-certificate and --tls-key, or --behind-proxy if a proxy in front terminates TLS",
        )
    return ServerSettings(home, host, int(port), tls, config)


def _from_file(file: Path) -> dict[str, JsonValue]:
    """Raises SpecError with file, line and column."""
    root, problems, whole = parse_yaml(read_source(file), str(file), {})
    if problems or not whole:
        raise SpecError(tuple(problems))
    if root is None:
        return {}
    if not isinstance(root, MapNode):
        raise SpecError((Problem(Place(str(file)), "expected `key: value` lines", f"listen: {DEFAULT_LISTEN}"),))
    value = to_value(root)
    assert isinstance(value, dict)
    try:
        ServerConfig.model_validate(value)
    except ValidationError as error:
        places = [(each, place_of(root, each["loc"], each["type"] == "extra_forbidden")) for each in error.errors()]
        fields = ", ".join(ServerConfig.model_fields)
        raise SpecError(tuple(
            Problem(place, f"{'.'.join(map(str, each['loc']))}: {each['msg']}", f"the settings are {fields}")
            for each, place in places
        )) from None  # fmt: skip
    return dict(value)
