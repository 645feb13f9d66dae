"""Amounts of memory and times as people write them."""

import re

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000 ** (power + 1) for power, prefix in enumerate("KMGTP")}
_UNITS |= {f"{prefix}IB": 1024 ** (power + 1) for power, prefix in enumerate("KMGTP")}
_QUANTITY = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """Bytes in `4GiB`, `500MB` or a plain number: powers of 1024 with the `i`, of 1000 without.

    Raises ValueError if it is no such quantity, or less than one byte.
    """
    if isinstance(text, int):
        amount = text
    else:
        match = _QUANTITY.fullmatch(text)
        unit = _UNITS.get(match[2].upper()) if match else None
        if match is None or unit is None:
            raise ValueError(f"{text!r} is not an amount of memory, expected for example 4GiB or 500MB")
        whole, _, fraction = match[1].partition(".")
        amount = int(whole) * unit + int(fraction or "0") * unit // 10 ** len(fraction)
    if amount < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return amount


_DURATION = re.compile(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?")


def parse_seconds(text: str | int) -> float:
    """Seconds in `90m`, `1h30m`, `2d` or a plain number. Raises ValueError if it is no such time, or none at all."""
    if isinstance(text, int) or text.strip().isdigit():
        seconds = float(text)
    else:
        match = _DURATION.fullmatch(text.strip())
        if match is None or not any(match.groups()):
            raise ValueError(f"{text!r} is not a time, expected for example 90m, 1h30m, 2d or a number of seconds")
        seconds = sum(
            int(amount or 0) * unit for amount, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True)
        )
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time at all")
    return seconds


def format_bytes(count: int) -> str:
    """`1.5 GiB`: the largest power of 1024 that leaves at least 1."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} PiB"
