"""The dashboard of the GPUs of a run, and of the hosts that they are in."""

from orchestrator.dashboards.boards.panel_parts import (
    ANNOTATIONS,
    BAD,
    GPUS_UID,
    JOB,
    MAIN,
    NOTICE,
    ONE_RUN,
    QUIET,
    RANK,
    falling,
    figure,
    latest,
    notable_from,
    rising,
    sel,
    total,
)
from orchestrator.dashboards.panel_values import Board, Column, Panel, Query, Row, Series

_RANK = 'rank=~"$rank"'
_EMPTY = "no GPU"


def gpu(expr: str, legend: str = "", instant: bool = False) -> Query:
    """A query that needs GPUs."""
    return Query(expr, legend, instant, needs="gpu")


def by_rank(metric: str) -> Query:
    """One series for each chosen rank."""
    return gpu(latest(metric, "rank", matchers=(_RANK,)), "rank {{rank}}")


def over_gpus(metric: str, stat: str) -> str:
    """A figure over the GPUs of all ranks: p50, max or min."""
    return latest(f"{metric}_stat", matchers=(f'stat="{stat}"',))


_MEMORY_SHARE = f"{sel('convoy_gpu_memory_used_bytes')} / {sel('convoy_gpu_memory_total_bytes')}"
FIGURES = (
    figure(
        "GPUs",
        "Workers that train on a GPU.",
        "none",
        gpu(f"{latest('convoy_workers')} and on () count({sel('convoy_gpu_info')})"),
        decimals=0,
    ),
    figure(
        "MFU",
        "Model FLOP utilisation: FLOP/s of the model, without recomputation, as a share of the devices' peak.",
        "percentunit",
        gpu(latest("convoy_mfu_ratio")),
        sparkline=True,
        decimals=1,
    ),
    figure(
        "Utilisation",
        "Share of time in which a kernel ran, median of the GPUs. It says that a GPU is busy, not how well.",
        "percentunit",
        gpu(over_gpus("convoy_gpu_utilization_ratio", "p50")),
        thresholds=falling(0.8, 0.5),
        decimals=0,
    ),
    figure(
        "Memory",
        "Used memory of the GPU that has least left, as a share of its size.",
        "percentunit",
        gpu(f"{over_gpus('convoy_gpu_memory_used_bytes', 'max')} / {latest('convoy_gpu_memory_total_bytes')}"),
        thresholds=rising((0.95, NOTICE), (0.99, BAD)),
        decimals=0,
    ),
    figure(
        "Power",
        "Of one GPU, median.",
        "watt",
        gpu(over_gpus("convoy_gpu_power_watts", "p50")),
        decimals=0,
    ),
    figure(
        "Hottest",
        "Temperature of the hottest GPU.",
        "celsius",
        gpu(over_gpus("convoy_gpu_temperature_celsius", "max")),
        thresholds=rising((80, NOTICE), (88, BAD)),
        decimals=0,
    ),
    figure(
        "Throttled",
        "GPUs whose clocks are held down now, for the reason that most of them have.",
        "none",
        gpu(latest("convoy_gpus_throttled")),
        thresholds=rising((1, NOTICE)),
        decimals=0,
    ),
    figure(
        "ECC errors",
        "Uncorrected memory errors in the range that is shown. A GPU with one should leave the pool.",
        "none",
        gpu(total("convoy_gpu_ecc_errors_total", matchers=('kind="uncorrected"',)), instant=True),
        thresholds=rising((1, BAD)),
        decimals=0,
    ),
)

CHARTS = (
    Panel(
        "Utilisation by rank",
        "Share of time in which a kernel ran. One low line: a slow rank, or one that waits for its data.",
        "percentunit",
        (by_rank("convoy_gpu_utilization_ratio"),),
        minimum=0,
        maximum=1,
        empty=_EMPTY,
    ),
    Panel(
        "Memory by rank",
        "Used memory of the device.",
        "bytes",
        (
            by_rank("convoy_gpu_memory_used_bytes"),
            gpu(f"min({sel('convoy_gpu_memory_total_bytes')})", "size"),
        ),
        series={"size": Series(BAD, dashed=True)},
        minimum=0,
        empty=_EMPTY,
    ),
    Panel(
        "Memory in tensors",
        "PyTorch's allocator, of the rank with most: in tensors now and at the peak, and reserved from the device. Much"
        " more reserved than peak is fragmentation.",
        "bytes",
        (
            gpu(latest("convoy_worker_device_allocated_bytes"), "in tensors"),
            gpu(latest("convoy_worker_device_peak_allocated_bytes"), "peak"),
            gpu(latest("convoy_worker_device_reserved_bytes"), "reserved"),
        ),
        series={"in tensors": Series(MAIN), "peak": Series(NOTICE), "reserved": Series(QUIET, dashed=True)},
        minimum=0,
        empty=_EMPTY,
    ),
    Panel(
        "Power by rank",
        "Less than the others at the same work: throttled, or waiting. Of more than 8 ranks, the slowest 4.",
        "watt",
        (by_rank("convoy_gpu_power_watts"),),
        minimum=0,
        empty=_EMPTY,
    ),
    Panel(
        "Temperature by rank",
        "Clocks are lowered above about 85 °C.",
        "celsius",
        (by_rank("convoy_gpu_temperature_celsius"),),
        thresholds=rising((85, NOTICE)),
        empty=_EMPTY,
    ),
    Panel(
        "Throttling by reason",
        "GPUs whose clock is lowered. A power cap is normal at full load; thermal and hardware slowdowns are not.",
        "none",
        (gpu(latest("convoy_gpus_throttled", "reason"), "{{reason}}"),),
        drawing="steps",
        minimum=0,
        decimals=0,
        empty=_EMPTY,
    ),
)

_HOSTNAME = 'label_replace(node_uname_info, "hostname", "$1", "nodename", "(.+)")'


def _of_hosts(expr: str) -> str:
    """A figure of node_exporter, by instance, for the nodes of the run: `node_uname_info` has the host's name."""
    return (
        f"sum by (hostname) ({expr} * on (instance) group_left (hostname) {_HOSTNAME})"
        f" * on (hostname) group_left () max by (hostname) ({sel('convoy_node_info')})"
    )


_DEVICE = 'device!~"lo|veth.*|docker.*|br-.*|cni.*|flannel.*|cali.*"'
HOSTS = Row(
    "GPUs and hosts, with dcgm-exporter and node_exporter",
    (
        Panel(
            "GPUs",
            "Which GPU each rank has. The UUID is that of nvidia-smi and DCGM.",
            "none",
            (
                gpu(f"max by (rank, hostname, name, uuid) ({sel('convoy_gpu_info')})", instant=True),
                gpu(latest("convoy_gpu_utilization_ratio", "rank"), instant=True),
                gpu(f"max by (rank) ({_MEMORY_SHARE})", instant=True),
                gpu(latest("convoy_gpu_power_watts", "rank"), instant=True),
                gpu(latest("convoy_gpu_temperature_celsius", "rank"), instant=True),
            ),
            "table",
            24,
            7,
            columns=(
                Column("rank", "Rank", width=70),
                Column("hostname", "Host", width=120),
                Column("name", "GPU", width=200),
                Column("uuid", "UUID", width=310),
                Column("B", "Utilisation", "percentunit", 0, gauge=True),
                Column("C", "Memory", "percentunit", 0, gauge=True),
                Column("D", "Power", "watt", 0),
                Column("E", "Temperature", "celsius", 0, thresholds=notable_from(88)),
            ),
            empty=_EMPTY,
        ),
        Panel(
            "Tensor cores and network",
            "Share of time in which the tensor cores are busy, of each rank's GPU (dcgm-exporter), beside the bytes"
            " that the run's hosts send (node_exporter, right axis). Idle tensor cores while the network is busy:"
            " training waits for collectives.",
            "percentunit",
            (
                Query(
                    'label_replace(DCGM_FI_PROF_PIPE_TENSOR_ACTIVE, "uuid", "$1", "UUID", "(.+)")'
                    f" * on (uuid) group_left (rank) max by (uuid, rank) ({sel('convoy_gpu_info', _RANK)})",
                    "tensor cores, rank {{rank}}",
                    needs="exporters",
                ),
                Query(
                    _of_hosts(f"rate(node_network_transmit_bytes_total{{{_DEVICE}}}[$__rate_interval])"),
                    "network, {{hostname}}",
                    needs="exporters",
                ),
            ),
            width=12,
            series={"/^network/": Series(unit="Bps", right_axis=True, dashed=True)},
            minimum=0,
            empty="no dcgm-exporter or node_exporter",
        ),
        Panel(
            "CPU and memory of the hosts",
            "Of the run's hosts (node_exporter): share of the processors that are busy, and of memory that is used"
            " (dashed). Busy processors slow down data loading and collectives.",
            "percentunit",
            (
                Query(
                    _of_hosts('avg by (instance) (1 - rate(node_cpu_seconds_total{mode="idle"}[$__rate_interval]))'),
                    "CPU, {{hostname}}",
                    needs="exporters",
                ),
                Query(
                    _of_hosts("(1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes)"),
                    "memory, {{hostname}}",
                    needs="exporters",
                ),
            ),
            width=12,
            series={"/^memory/": Series(dashed=True)},
            minimum=0,
            maximum=1,
            empty="no node_exporter",
        ),
    ),
)

GPUS = Board(
    GPUS_UID,
    "Convoy / GPUs",
    "The GPUs of a run, and the hosts that they are in.",
    (JOB, ONE_RUN, RANK),
    (Row("", (*FIGURES, *CHARTS)), HOSTS),
    ANNOTATIONS,
)
