"""Texts of real errors, from bug reports and from the sources of the libraries, and what each must lead to."""

from orchestrator.domain.engine_errors import Cause

NCCL = "torch.distributed.DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:317, "
ASYNC = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)

TEXTS: tuple[tuple[str, Cause | None], ...] = (
    # Memory of the device and of the host.
    ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of "
     "which 1.21 GiB is free. Process 4242 has 77.93 GiB memory in use.", Cause.OUT_OF_MEMORY),
    ("AcceleratorError: CUDA error: out of memory" + ASYNC, Cause.OUT_OF_MEMORY),
    ("RuntimeError: CUDA driver error: out of memory", Cause.OUT_OF_MEMORY),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", Cause.OUT_OF_MEMORY),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", Cause.OUT_OF_MEMORY),
    (NCCL + "unhandled cuda error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclUnhandledCudaError: "
     "Call to CUDA function failed.\nLast error:\nFailed to CUDA calloc async 608 bytes", Cause.OUT_OF_MEMORY),
    (NCCL + "unhandled cuda error, NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast "
     "error:\nCuda failure 2 'out of memory'", Cause.OUT_OF_MEMORY),
    ("OutOfMemoryError: HIP out of memory. Tried to allocate 20.00 MiB.", Cause.OUT_OF_MEMORY),
    ("RuntimeError: Triton Error [CUDA]: out of memory", Cause.OUT_OF_MEMORY),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you "
     "tried to allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)", Cause.OUT_OF_MEMORY),
    ("MemoryError: Unable to allocate 4.00 GiB for an array with shape (1073741824,)", Cause.OUT_OF_MEMORY),
    ("OSError: [Errno 12] Cannot allocate memory", Cause.OUT_OF_MEMORY),
    # The device, or this process's context on it.
    ("AcceleratorError: CUDA error: uncorrectable ECC error encountered" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: an illegal memory access was encountered" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: unspecified launch failure" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: misaligned address" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: an illegal instruction was encountered" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: invalid program counter" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: operation not supported on global/shared address space" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: hardware stack error" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: the launch timed out and was terminated" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error" + ASYNC,
     Cause.DEVICE),
    ("AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable" + ASYNC, Cause.DEVICE),
    ("AcceleratorError: CUDA error: unknown error" + ASYNC, Cause.DEVICE),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k, "
     "&falpha, a, CUDA_R_16BF, lda)`", Cause.DEVICE),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", Cause.DEVICE),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasSgemm(...)`", Cause.DEVICE),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", Cause.DEVICE),
    ("RuntimeError: cuDNN error: CUDNN_STATUS_MAPPING_ERROR", Cause.DEVICE),
    (NCCL + "unhandled cuda error, NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast "
     "error:\nCuda failure 214 'uncorrectable ECC error encountered'", Cause.DEVICE),
    (NCCL + "unhandled cuda error, NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast "
     "error:\nCuda failure 'unspecified launch failure'", Cause.DEVICE),
    ("RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered", Cause.DEVICE),
    ("RuntimeError: HIP error: unspecified launch failure", Cause.DEVICE),
    ("Memory access fault by GPU node-1 (Agent handle: 0x55d) on address 0x7f0. Reason: Unknown.", Cause.DEVICE),
    # A kernel that refused its input.
    ("AcceleratorError: CUDA error: device-side assert triggered" + ASYNC, Cause.ASSERTION),
    (NCCL + "unhandled cuda error, NCCL version 2.27.5\nLast error:\nCuda failure 710 'device-side assert triggered'",
     Cause.ASSERTION),
    ("RuntimeError: Triton Error [CUDA]: device-side assert triggered", Cause.ASSERTION),
    # Another process is gone.
    ("DistBackendError: NCCL communicator was aborted on rank 1.", Cause.PEER),
    (NCCL + "remote process exited or there was a network error, NCCL version 2.27.5\nncclRemoteError: A call failed "
     "possibly due to a network error or a remote process exiting prematurely.\nLast error:\nsocketProgress: "
     "Connection closed by remote peer node-3<51422>", Cause.PEER),
    (NCCL + "unhandled system error, NCCL version 2.27.5\nncclSystemError: System call (e.g. socket, malloc) or "
     "external library call failed or device error.\nLast error:\nsocketStartConnect: Connect to 10.0.0.3<53405> "
     "failed : Software caused connection abort", Cause.PEER),
    (NCCL + "internal error - please report this issue to the NCCL developers, NCCL version 2.27.5\nncclInternalError: "
     "Internal check failed.\nLast error:\nSocket recv failed while polling for opId=0x7f3a", Cause.PEER),
    ("DistBackendError: [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1204, "
     "OpType=ALLREDUCE, NumelIn=1, Timeout(ms)=600000) ran for 600029 milliseconds before timing out.", Cause.PEER),
    ("DistBackendError: [1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value "
     "store by key '0', but store->get('0') got error: Connection reset by peer", Cause.PEER),
    ("RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer "
     "[10.0.0.2]:19522", Cause.PEER),
    ("RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms "
     "for recv operation to complete", Cause.PEER),
    ("DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.", Cause.PEER),
    ("DistNetworkError: The client socket has failed to connect to any network address of (node-0, 29500).",
     Cause.PEER),
    ("RuntimeError: Broken pipe", Cause.PEER),
    # Machines that are set up in a way that cannot work.
    (NCCL + "invalid usage, NCCL version 2.27.5\nncclInvalidUsage: This usually reflects invalid usage of NCCL "
     "library.\nLast error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000", Cause.SETUP),
    (NCCL + "unhandled system error, NCCL version 2.27.5\nncclSystemError: System call failed.\nLast error:\nError "
     "while creating shared memory segment /dev/shm/nccl-2jHpQ4 (size 9637888), error: No space left on device (28)",
     Cause.SETUP),
    ("AcceleratorError: CUDA error: no kernel image is available for execution on the device" + ASYNC, Cause.SETUP),
    ("AcceleratorError: CUDA error: invalid device ordinal" + ASYNC, Cause.SETUP),
    ("AcceleratorError: CUDA error: system not yet initialized" + ASYNC, Cause.SETUP),
    ("RuntimeError: CUDA driver version is insufficient for CUDA runtime version", Cause.SETUP),
    ("AcceleratorError: CUDA error: peer access is not supported between these two devices" + ASYNC, Cause.SETUP),
    (NCCL + "unhandled cuda error, NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast "
     "error:\nCuda failure 1 'invalid argument' transport/nvls.cc:244", Cause.SETUP),
    ("RuntimeError: Triton Error [CUDA]: device kernel image is invalid", Cause.SETUP),
    ("RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the "
     "'spawn' start method", Cause.SETUP),
    # Errors of code or data, which the same code on the same data raises again.
    ("RuntimeError: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!",
     None),
    ("AcceleratorError: CUDA error: invalid argument" + ASYNC, None),
    ("AcceleratorError: CUDA error: operation not permitted when stream is capturing" + ASYNC, None),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasSgemm(...)`", None),
    ("RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x32 and 64x8)", None),
    ("IndexError: index out of range in self", None),
    ("ValueError: loss must be a scalar", None),
    ("KeyError: 'input_ids'", None),
)  # fmt: skip
