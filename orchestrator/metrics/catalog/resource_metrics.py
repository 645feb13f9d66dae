"""The part of the catalog about memory, GPUs, nodes, copies of the state and the driver's own load."""

from orchestrator.checkpoint.memory.copy_totals import REPLICATION_BOUNDS_S
from orchestrator.metrics.catalog.metric_family import Metric

_WRITE_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

WORKER_MEMORY = Metric(
    "convoy_worker_memory_bytes",
    "gauge",
    "bytes",
    "Memory in the last step: p50, p99 and max over the workers. Kinds: rss, peak_rss, and on "
    "GPUs allocated, reserved, peak_allocated.",
    ("kind", "stat"),
    origin="worker",
)
RSS = Metric(
    "convoy_worker_rss_bytes",
    "gauge",
    "bytes",
    "Resident host memory of a worker. Series with a rank are of all workers if there are at most 8, else of the "
    "slowest 4.",
    ("rank",),
    origin="worker",
)
PEAK_RSS = Metric(
    "convoy_worker_peak_rss_bytes",
    "gauge",
    "bytes",
    "Peak resident host memory of a worker.",
    ("rank",),
    origin="worker",
)
ALLOCATED = Metric(
    "convoy_worker_device_allocated_bytes",
    "gauge",
    "bytes",
    "Device memory in tensors; only on GPUs.",
    ("rank",),
    origin="worker",
)
RESERVED = Metric(
    "convoy_worker_device_reserved_bytes",
    "gauge",
    "bytes",
    "Device memory held by the allocator; only on GPUs.",
    ("rank",),
    origin="worker",
)
PEAK_ALLOCATED = Metric(
    "convoy_worker_device_peak_allocated_bytes",
    "gauge",
    "bytes",
    "Peak device memory in tensors; only on GPUs.",
    ("rank",),
    origin="worker",
)
MEMORY_PART = Metric(
    "convoy_memory_part_bytes",
    "gauge",
    "bytes",
    "Memory of the rank that has most, by part (parameters, gradients, optimizer, activations), as predicted by the "
    "planner and as measured: sizes of the engine's own tensors; activations from the allocator's peak, only on GPUs.",
    ("part", "source"),
    origin="worker",
)

GPU_INFO = Metric(
    "convoy_gpu_info",
    "gauge",
    "",
    "Always 1; which GPU a rank trains on. `hostname` and `uuid` join with DCGM's `Hostname` and `UUID`. Series with a "
    "rank are of all workers if there are at most 8, else of the slowest 4.",
    ("rank", "hostname", "uuid", "name"),
    origin="nvml",
)
GPU_UTILIZATION = Metric(
    "convoy_gpu_utilization_ratio",
    "gauge",
    "",
    "Share of NVML's last sample period in which a kernel ran on the rank's GPU, 0 to 1.",
    ("rank",),
    origin="nvml",
)
GPU_MEMORY_USED = Metric(
    "convoy_gpu_memory_used_bytes",
    "gauge",
    "bytes",
    "Memory of the rank's GPU in use by all processes.",
    ("rank",),
    origin="nvml",
)
GPU_MEMORY_TOTAL = Metric(
    "convoy_gpu_memory_total_bytes", "gauge", "bytes", "Memory of the rank's GPU.", ("rank",), origin="nvml"
)
GPU_POWER = Metric(
    "convoy_gpu_power_watts", "gauge", "watts", "Power draw of the rank's GPU.", ("rank",), origin="nvml"
)
GPU_TEMPERATURE = Metric(
    "convoy_gpu_temperature_celsius",
    "gauge",
    "degrees Celsius",
    "Temperature of the rank's GPU.",
    ("rank",),
    origin="nvml",
)
GPU_THROTTLED = Metric(
    "convoy_gpu_throttled",
    "gauge",
    "",
    "1 while the clocks of the rank's GPU are held down for the reason, else 0: power_cap, power_brake, thermal, "
    "hardware.",
    ("rank", "reason"),
    origin="nvml",
)
GPU_ECC_ERRORS = Metric(
    "convoy_gpu_ecc_errors_total",
    "counter",
    "",
    "ECC errors of the rank's GPU since its driver was loaded: corrected, uncorrected.",
    ("rank", "kind"),
    origin="nvml",
)
GPU_UTILIZATION_STAT = Metric(
    "convoy_gpu_utilization_ratio_stat",
    "gauge",
    "",
    "`convoy_gpu_utilization_ratio` over the GPUs of all ranks: p50, max, min.",
    ("stat",),
    origin="nvml",
)
GPU_MEMORY_USED_STAT = Metric(
    "convoy_gpu_memory_used_bytes_stat",
    "gauge",
    "bytes",
    "`convoy_gpu_memory_used_bytes` over the GPUs of all ranks: p50, max, min.",
    ("stat",),
    origin="nvml",
)
GPU_POWER_STAT = Metric(
    "convoy_gpu_power_watts_stat",
    "gauge",
    "watts",
    "`convoy_gpu_power_watts` over the GPUs of all ranks: p50, max, min.",
    ("stat",),
    origin="nvml",
)
GPU_TEMPERATURE_STAT = Metric(
    "convoy_gpu_temperature_celsius_stat",
    "gauge",
    "degrees Celsius",
    "`convoy_gpu_temperature_celsius` over the GPUs of all ranks: p50, max, min.",
    ("stat",),
    origin="nvml",
)
GPUS_THROTTLED = Metric(
    "convoy_gpus_throttled",
    "gauge",
    "GPUs",
    "GPUs of all ranks whose clocks are held down, by the reasons of `convoy_gpu_throttled`.",
    ("reason",),
    origin="nvml",
)

NODE_INFO = Metric(
    "convoy_node_info",
    "gauge",
    "",
    "Always 1; nodes that train, at most 256. `hostname` joins with node_exporter's `node_uname_info{nodename}` and "
    "with DCGM's `Hostname`.",
    ("node", "hostname"),
    origin="driver",
)

SNAPSHOT_SECONDS = Metric(
    "convoy_snapshot_duration_seconds",
    "histogram",
    "seconds",
    "How long a snapshot paused training: the copy of the state into the vault, of the slowest rank.",
    buckets=REPLICATION_BOUNDS_S,
    origin="worker",
)
SNAPSHOT_BYTES = Metric(
    "convoy_snapshot_bytes_total", "counter", "bytes", "State that snapshots copied into vaults.", origin="vault"
)
REPLICATION_SECONDS = Metric(
    "convoy_replication_duration_seconds",
    "histogram",
    "seconds",
    "From a snapshot of one rank in its node's vault until all peers have it.",
    buckets=REPLICATION_BOUNDS_S,
    origin="vault",
)
REPLICATION_BYTES = Metric(
    "convoy_replication_bytes_total",
    "counter",
    "bytes",
    "State that peers of vaults received, once for each peer. On one machine they share the memory instead.",
    origin="vault",
)
REPLICATION_QUEUED = Metric(
    "convoy_replication_queued_bytes",
    "gauge",
    "bytes",
    "State in vaults that their peers do not have yet, as of the last survey.",
    origin="vault",
)
DURABLE_WRITE_SECONDS = Metric(
    "convoy_durable_write_duration_seconds",
    "histogram",
    "seconds",
    "How long a checkpoint was written to storage; training continues meanwhile if the vaults write.",
    buckets=_WRITE_BUCKETS,
    origin="driver",
)
DURABLE_WRITES_QUEUED = Metric(
    "convoy_durable_writes_queued",
    "gauge",
    "",
    "Checkpoints that are being written or wait for it.",
    origin="driver",
)

DRIVER_CPU = Metric(
    "convoy_driver_cpu_seconds_total", "counter", "seconds", "CPU time of the driver's process.", origin="driver"
)
DRIVER_RSS = Metric(
    "convoy_driver_rss_bytes", "gauge", "bytes", "Resident memory of the driver's process.", origin="driver"
)
DRIVER_LAG = Metric(
    "convoy_driver_loop_lag_seconds",
    "gauge",
    "seconds",
    "Longest round of the driver's loop in the last 10 seconds. A round waits up to 0.1 s for news; workers that are "
    "busy or gone do not make it longer.",
    origin="driver",
)
DRIVER_FILES = Metric(
    "convoy_driver_open_files", "gauge", "", "File descriptors that the driver's process has open.", origin="driver"
)

RESOURCES: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of the above, in their order."""
