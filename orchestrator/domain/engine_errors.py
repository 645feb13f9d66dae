"""What an error of CUDA, NCCL, gloo or an allocator means for a run. Pure: texts in, a cause out.

These libraries raise RuntimeError for nearly everything, so the text is all there is. It is read once, in the process
that caught the error, and travels from there as a `Cause`. Convoy's own errors carry their cause instead: see
`errors.cause_of_error`. Sources of the texts: `cudaGetErrorString`, the CUDA runtime
API's list of error codes (https://docs.nvidia.com/cuda/cuda-runtime-api), torch's `NCCLUtils.cpp`,
`CUDAException.h` and `CUDABlas.cpp`, NCCL's `ncclGetErrorString`, gloo's `transport/tcp`.
"""

import re
from enum import StrEnum

CAUSE = "cause"
"""Key of the cause in `ConvoyError.details`."""
MAX_CHARACTERS = 20_000
"""What is read of an error: torch appends C++ stacks to some."""


class Cause(StrEnum):
    """Why a worker's computation failed."""

    OUT_OF_MEMORY = "out of memory"
    """Of the device or the host. A smaller micro batch may help; the process can continue."""
    DEVICE = "device"
    """The GPU, or this process's context on it, is broken. The process must end, and the GPU is suspect."""
    ASSERTION = "assertion"
    """A kernel refused its input, such as a token id beyond the vocabulary. The process must end; the GPU is sound."""
    PEER = "peer"
    """Another process or the connection to it is lost. The cause is elsewhere; this process can continue."""
    SETUP = "setup"
    """The machine is set up in a way that cannot work. The same error would come again."""

    @property
    def ends_process(self) -> bool:
        """The CUDA context cannot be used again: every later call in this process fails too."""
        return self in (Cause.DEVICE, Cause.ASSERTION)


_ASSERTION = r"device-side assert triggered"

_OUT_OF_MEMORY = (
    r"OutOfMemoryError|MemoryError|out of memory|can't allocate memory|cannot allocate memory|"
    r"CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED|Failed to CUDA (calloc|malloc)"
)

_SETUP = (
    r"no kernel image is available|device kernel image is invalid|driver version is insufficient|"
    r"forward compatibility was attempted|system not yet initialized|invalid device ordinal|no CUDA-capable device|"
    r"Driver/library version mismatch|peer access is not supported|"
    r"ncclInvalidUsage|ncclInvalidArgument|Duplicate GPU detected|Mismatched NCCL version|"
    r"creating shared memory segment|/dev/shm\S*.*No space left|No space left on device.*/dev/shm|"
    r"re-initialize CUDA in forked|transport/nvls"
)

_DEVICE = (
    r"uncorrectable|\bECC error|unspecified launch failure|illegal memory access|illegal instruction was encountered|"
    r"misaligned address|invalid program counter|shared address space|hardware stack error|launch timed out|"
    r"NVLink or a hardware error|nvlink error|CUDA(-capable)? device\(s\) is/are busy or unavailable|GPU is lost|"
    r"fallen off the bus|(CUDA|HIP) error: unknown error|Cuda failure \d* ?'unknown error'|"
    r"(CUDA|HIP) error: .*(launch failure|context is destroyed)|external device failure|"
    r"CU(BLAS|DNN|SOLVER)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)|"
    r"HSA_STATUS_ERROR|memory access fault by GPU"
)

_PEER = (
    r"connection (closed|reset|refused|was (broken|closed))|broken pipe|socket closed|gloo|nccl|recvValueWithTimeout|"
    r"Watchdog caught collective operation timeout|"
    r"DistBackendError|DistNetworkError|DistStoreError|ProcessGroup|TCPStore"
)

_IN_ORDER = (
    # An assertion makes every later call fail: texts that follow it may name other errors, and it names itself first.
    (Cause.ASSERTION, re.compile(_ASSERTION, re.IGNORECASE)),
    (Cause.SETUP, re.compile(_SETUP, re.IGNORECASE | re.DOTALL)),
    # NCCL reports the device's errors inside its own; before PEER, which any text of NCCL matches.
    (Cause.DEVICE, re.compile(_DEVICE, re.IGNORECASE)),
    (Cause.OUT_OF_MEMORY, re.compile(_OUT_OF_MEMORY, re.IGNORECASE)),
    (Cause.PEER, re.compile(_PEER, re.IGNORECASE)),
)


def find_cause(text: str) -> Cause | None:
    """The cause that the text of an error names, its type included; None if it is an error of code or data."""
    shown = text[:MAX_CHARACTERS]
    return next((cause for cause, pattern in _IN_ORDER if pattern.search(shown)), None)
