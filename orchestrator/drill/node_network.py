"""A network of their own for the nodes of a local cluster, so that one of them can be cut off.

Every node but the head gets a network namespace, and a pair of virtual interfaces that ties it to a bridge. The head,
the GCS and the driver stay in the machine's own namespace, at the bridge's address. The addresses are private ones that
no route of this machine covers, and the bridge forwards to no other interface. Ray listens on the bridge's address too,
wider than on loopback: the cluster therefore asks for a token (`ray_settings.require_token`), new for each drill.

Names carry the pid of the drill that made them: another drill removes what one that was killed has left.
"""

import ipaddress
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from orchestrator.domain.errors import UsageError
from orchestrator.domain.fault_plan import NodeAddress

NAMESPACES = Path("/run/netns")
INTERFACE = "eth0"
"""Of a node, in its namespace."""
POOL = ipaddress.ip_network("10.213.0.0/16")
_LINK = re.compile(r"cv(\d+)(b|n\d+)")
_NAMESPACE = re.compile(r"convoy-drill-(\d+)-\d+")


class Network:
    """For `nodes` nodes. `close` removes it. Raises UsageError if that is not permitted."""

    def __init__(self, nodes: int) -> None:
        self._prefix, self._first = f"cv{os.getpid()}", f"convoy-drill-{os.getpid()}-"
        try:
            self.nodes = self._build(nodes)
        except BaseException:
            self.close()
            raise

    def cut(self, address: str) -> None:
        """Take a node's link down. Its processes stay alive but reach no other node."""
        index = [node.address for node in self.nodes].index(address)
        _ip("link", "set", f"{self._prefix}n{index}", "down")

    def mend(self) -> None:
        """Put all links up again: another cluster begins."""
        for index in range(1, len(self.nodes)):
            _ip("link", "set", f"{self._prefix}n{index}", "up")

    def close(self) -> None:
        """Remove all of it. Processes in the namespaces keep running without a network. Idempotent."""
        remove(os.getpid())

    def _build(self, nodes: int) -> tuple[NodeAddress, ...]:
        hosts = list(free_network(_routes()).hosts())
        bridge, length = f"{self._prefix}b", 24
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{hosts[0]}/{length}", "dev", bridge)
        _ip("link", "set", bridge, "up")
        found = [NodeAddress(str(hosts[0]), bridge, None)]
        for index in range(1, nodes):
            name, outer = f"{self._first}{index}", f"{self._prefix}n{index}"
            _ip("netns", "add", name)
            _ip("link", "add", outer, "type", "veth", "peer", "name", INTERFACE, "netns", name)
            _ip("link", "set", outer, "master", bridge)
            _ip("link", "set", outer, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"{hosts[index]}/{length}", "dev", INTERFACE)
            _ip("-n", name, "link", "set", INTERFACE, "up")
            found.append(NodeAddress(str(hosts[index]), INTERFACE, str(NAMESPACES / name)))
        return tuple(found)


def free_network(taken: Sequence[str]) -> ipaddress.IPv4Network:
    """The first /24 of `POOL` that overlaps none of the `taken` networks. Raises UsageError if there is none."""
    networks = [ipaddress.ip_network(each, strict=False) for each in taken]
    for candidate in POOL.subnets(new_prefix=24):
        if not any(candidate.overlaps(network) for network in networks):
            return ipaddress.IPv4Network(candidate)
    raise UsageError(f"no network in {POOL} is free on this machine: its routes cover all of them")


def remove(pid: int) -> None:
    """Remove what the drill of that process made."""
    for name in _namespaces():
        if (found := _NAMESPACE.fullmatch(name)) and int(found[1]) == pid:
            _ip("netns", "del", name)
    for name in _links():
        if (found := _LINK.fullmatch(name)) and int(found[1]) == pid:
            _ip("link", "del", name, missing_ok=True)  # one end of a pair goes with the other


def sweep() -> None:
    """Remove what drills left that were killed."""
    named = [found for name in _namespaces() if (found := _NAMESPACE.fullmatch(name))]
    linked = [found for name in _links() if (found := _LINK.fullmatch(name))]
    for pid in sorted({int(found[1]) for found in [*named, *linked]}):
        if not Path(f"/proc/{pid}").exists():
            remove(pid)


def why_not() -> str | None:
    """Why this process cannot create one; None if it can. It tries."""
    try:
        Network(2).close()
    except UsageError as error:
        return error.message
    return None


def _namespaces() -> list[str]:
    return sorted(path.name for path in NAMESPACES.iterdir()) if NAMESPACES.is_dir() else []


def _links() -> list[str]:
    root = Path("/sys/class/net")
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def _routes() -> list[str]:
    """Networks that this machine has routes to, the default route left out."""
    found = [str(route["dst"]) for route in json.loads(_ip("-json", "-4", "route", "show", "table", "all") or "[]")]
    return [each for each in found if re.fullmatch(r"[\d.]+(/\d+)?", each)]


def _ip(*arguments: str, missing_ok: bool = False) -> str:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"`ip` (package iproute2) cannot be run: {error.strerror}") from error
    if done.returncode and not missing_ok:
        said = done.stderr.strip().splitlines()
        raise UsageError(f"`ip {' '.join(arguments)}`: {said[0] if said else f'ended with code {done.returncode}'}")
    return done.stdout
