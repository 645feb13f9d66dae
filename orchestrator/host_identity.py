"""Which start of which kernel this host runs. Under all layers."""

from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """A random identifier that changes at every start of the host's kernel; empty if the system has none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
