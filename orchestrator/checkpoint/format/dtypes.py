"""Element types of shard files, by name. bfloat16, which numpy lacks, is kept as its 16 bits."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.domain.errors import CheckpointError

Elements: TypeAlias = "NDArray[np.generic[object]]"
"""An array of any element type."""
ElementType: TypeAlias = "np.dtype[np.generic[object]]"

STORAGE: dict[str, ElementType] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "int16": np.dtype("<i2"),
    "int8": np.dtype("<i1"),
    "uint8": np.dtype("<u1"),
    "bool": np.dtype("?"),
}


def storage_dtype(name: str) -> ElementType:
    """How elements of type `name` are stored in a file. Raises CheckpointError for a type the format does not know."""
    try:
        return STORAGE[name]
    except KeyError:
        raise CheckpointError(
            f"a tensor of type {name} cannot be stored", hint=f"known types: {', '.join(STORAGE)}"
        ) from None


def widen_bfloat16(raw: Elements) -> NDArray[np.float32]:
    """bfloat16 bits as float32. Exact: bfloat16 is the upper half of a float32."""
    return (raw.astype(np.uint32) << 16).view(np.float32)


def decode(raw: Elements, dtype: str, out: Elements) -> None:
    """Copy stored elements into `out`, converting between floating types if they differ.

    `out` of uint16 takes the bits of a bfloat16 as they are. Raises CheckpointError if a conversion would not make
    sense, e.g. integers into floats.
    """
    if raw.dtype == out.dtype:
        out[:] = raw
    elif dtype == "bfloat16" and out.dtype.kind == "f":
        out[:] = widen_bfloat16(raw)
    elif raw.dtype.kind == "f" and out.dtype.kind == "f":
        out[:] = raw
    else:
        raise CheckpointError(f"stored elements of type {dtype} do not fit an array of {out.dtype}")
