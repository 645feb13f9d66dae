"""Settings of Ray that its documentation does not describe, and the log line of it that we suppress.

Names and defaults: Ray's `src/ray/common/ray_config_def.h`. Every process of Ray reads its `RAY_*` variables once, when
its library is loaded.
"""

import logging
import secrets
from collections.abc import MutableMapping

VARIABLES = "RAY_"
"""How the names of all variables begin that Ray reads."""

WORKER_ENV = {"RAY_worker_niceness": "0"}  # Ray's default runs workers at nice 15
"""Environment of every worker process, on local and on joined clusters."""

LOCAL_ENV = {
    **WORKER_ENV,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    # A killed node is detected in about 3 s instead of 14.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    # A worker waits for the fork server's imports before it registers; Ray's default ends it after 60 s.
    "RAY_worker_register_timeout_seconds": "180",
    "PYTHONUNBUFFERED": "1",
}
"""For all processes of a local cluster."""

WITHOUT_HEAD_S = 60.0
"""After this time without its GCS, Ray ends every process of a cluster (`gcs_rpc_server_reconnect_timeout_s`)."""


def require_token(environment: MutableMapping[str, str]) -> None:
    """Have a cluster that is started with this environment, and the drivers that join it, use a new token."""
    environment.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    environment.pop("RAY_AUTH_TOKEN_PATH", None)


def suppress_sigterm_warning() -> None:
    """Ray warns that it does not handle SIGTERM outside the main thread. The command line handles it."""
    logging.getLogger("ray._private.worker").addFilter(lambda record: "SIGTERM handler" not in record.getMessage())
