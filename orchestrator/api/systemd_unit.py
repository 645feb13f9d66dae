"""The systemd unit of a server. Pure."""

import os
from pathlib import Path

from orchestrator.api.server_settings import DEFAULT_LISTEN, ServerSettings

UNIT = "convoy.service"


def unit_path(for_user: bool, home: Path) -> Path:
    """Where systemd looks for it. `home`: of the user."""
    return home / ".config" / "systemd" / "user" / UNIT if for_user else Path("/etc/systemd/system") / UNIT


def unit_text(settings: ServerSettings, config_file: Path | None, python: str, for_user: bool) -> str:
    """The unit. `KillMode=process`: drivers of runs outlive the server
    (https://www.freedesktop.org/software/systemd/man/latest/systemd.kill.html)."""
    command = [python, "-m", "orchestrator", "server", "start", "--foreground", "--home", str(settings.home.absolute())]
    command += _arguments(settings, config_file)
    user = "" if for_user else f"User={os.environ.get('SUDO_USER') or os.environ.get('USER') or 'convoy'}\n"
    return f"""\
[Unit]
Description=Convoy: a queue of training runs
After=network-online.target
Wants=network-online.target

[Service]
{user}ExecStart={" ".join(_quoted(each) for each in command)}
Restart=always
RestartSec=2
KillMode=process
TimeoutStopSec=30
NoNewPrivileges=yes

[Install]
WantedBy={"default.target" if for_user else "multi-user.target"}
"""


def _arguments(settings: ServerSettings, config_file: Path | None) -> list[str]:
    """The settings that are not those of the config file, as flags."""
    config = settings.config
    pairs = [
        ("--config", str(config_file.absolute()) if config_file is not None else None),
        ("--listen", config.listen if config.listen != DEFAULT_LISTEN else None),
        ("--tls-certificate", str(settings.tls[0]) if settings.tls else None),
        ("--tls-key", str(settings.tls[1]) if settings.tls else None),
        ("--address", config.address),
        ("--nodes", str(config.nodes) if config.nodes != 1 else None),
        ("--cpus-per-node", f"{config.cpus_per_node:g}" if config.cpus_per_node is not None else None),
        ("--storage", config.storage),
        *(("--path", path) for path in config.paths or ()),
        *(("--variable", name) for name in config.variables),
    ]
    flags = ["--behind-proxy"] if config.behind_proxy else []
    return flags + [part for name, value in pairs if value is not None for part in (name, value)]


def _quoted(text: str) -> str:
    """As systemd reads it: `%` and `$` mean something to it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if any(c in text for c in ' \t"\\') else escaped
