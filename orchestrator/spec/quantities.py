"""Amounts of memory as people write them."""

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


def format_bytes(count: int) -> str:
    """`1.5 GiB`: the largest power of 1024 that leaves at least 1."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} PiB"
