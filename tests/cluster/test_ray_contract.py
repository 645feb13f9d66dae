"""What this package assumes about Ray beyond its documentation. A test that fails after an upgrade says in its name or
its message which assumption no longer holds; the code that relies on it is in `orchestrator/clusters/ray`.
"""

import contextlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray import exceptions
from ray.core.generated import autoscaler_pb2, common_pb2, gcs_pb2
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.clusters.node_labels import SOURCES
from orchestrator.clusters.ray import gcs, live_nodes, worker_death
from orchestrator.clusters.ray.attachment import logs_directory
from orchestrator.clusters.ray.gcs import GcsConnection
from orchestrator.clusters.ray.gpus import show_gpus
from orchestrator.clusters.ray.local.local_cluster import LocalCluster
from orchestrator.clusters.ray.local.raylet import (
    AGENT_PORT_FILES,
    ClusterFiles,
    LocalNode,
    gcs_command,
    installed_ray,
    raylet_command,
    worker_command,
)
from orchestrator.clusters.ray.node_processes import descendants, is_head, is_worker, node_id_of, raylet_of
from orchestrator.clusters.ray.placement_groups import group_on, node_of, placed_after_s, release
from orchestrator.clusters.ray.ray_settings import LOCAL_ENV, WITHOUT_HEAD_S
from orchestrator.clusters.ray.worker_death import DeathKind
from orchestrator.domain.fault_plan import NodeAddress
from orchestrator.gang.agent.worker_actor import worker_environment
from tests.cluster.gang_runs import own_temporary_directory

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0
LABELS = {"rack": "r7", "ray.io/availability-zone": "eu-1a"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two nodes with a CPU each; the second one has labels, and does not live until the end."""
    places = [NodeAddress("127.0.0.1", "lo", None), NodeAddress("127.0.0.1", "lo", None, LABELS)]
    with own_temporary_directory():
        env = worker_environment(1, 0, os.environ)
        made = LocalCluster(2, {"CPU": 1.0, "memory": 2e9}, env=env, places=places, preload=()).start()
        try:
            yield made
        finally:
            made.close()


class Victim:
    """An actor that can end in several ways."""

    def pid(self) -> int:
        return os.getpid()

    def logs(self) -> str:
        return str(logs_directory())

    def exit(self, code: int) -> None:
        os._exit(code)

    def leave(self, code: int) -> None:
        sys.exit(code)

    def sleep(self) -> None:
        time.sleep(PATIENCE_S)


@pytest.fixture
def victim(cluster: LocalCluster) -> Iterator[Any]:
    actor = ray.remote(num_cpus=0, max_concurrency=2)(Victim).remote()
    ray.get(actor.pid.remote())
    yield actor
    ray.kill(actor)


# Without a cluster.


def flags_of(command: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in command if word.startswith("--")}


def commands() -> tuple[list[str], list[str], list[str]]:
    """Of the GCS, a raylet and a worker."""
    files = ClusterFiles(Path("/tmp/x"))
    node = LocalNode(0, "0" * 56, {"CPU": 1.0}, 1, NodeAddress("127.0.0.1", "lo", None, LABELS))
    worker = worker_command(installed_ray(), files, node, "127.0.0.1:1", "0" * 56)
    raylet = raylet_command(installed_ray(), files, node, "127.0.0.1:1", "0" * 56, worker)
    return gcs_command(installed_ray(), files, "0" * 56, "127.0.0.1"), raylet, worker


def test_ray_has_the_executables_that_a_local_cluster_runs() -> None:
    paths = installed_ray()
    for name in ("gcs", "raylet", "worker_setup", "worker"):
        assert Path(getattr(paths, name)).exists(), f"Ray no longer has its {name} where services.py says"
    assert paths.commit


@pytest.mark.parametrize("which", ["gcs", "raylet"])
def test_the_executables_know_our_flags(which: str) -> None:
    command = commands()[0 if which == "gcs" else 1]
    text = Path(command[0]).read_bytes()
    unknown = [flag for flag in flags_of(command) if not _mentions(text, flag.removeprefix("--"))]
    assert unknown == [], f"the {which} of this Ray no longer takes these flags"


def _mentions(text: bytes, flag: str) -> bool:
    """gflags reads a hyphen as an underscore, and keeps the name with underscores."""
    return any(name.encode() + b"\0" in text for name in (flag, flag.replace("-", "_")))


def test_workers_take_our_flags() -> None:
    source = Path(installed_ray().worker).read_text() + Path(installed_ray().worker_setup).read_text()
    unknown = [flag for flag in flags_of(commands()[2]) if f'"{flag}"' not in source]
    assert unknown == [], "Ray's worker script no longer takes these flags"


def test_the_raylet_waits_for_the_files_that_hold_the_ports_of_its_agents() -> None:
    from ray._private import ray_constants, services

    constants = {str(value) for value in vars(ray_constants).values() if isinstance(value, str)}
    text = Path(services.RAYLET_EXECUTABLE).read_bytes()
    missing = [name for name in AGENT_PORT_FILES if name not in constants and name.encode() not in text]
    assert missing == [], "the raylet no longer reads the ports of its agents from these files"


def test_the_libraries_know_our_settings() -> None:
    from ray._private import services

    text = Path(services.RAYLET_EXECUTABLE).read_bytes()
    names = [name.removeprefix("RAY_") for name in LOCAL_ENV if name.startswith("RAY_")]
    internal = [name for name in names if name.islower()]
    assert len(internal) >= 8
    unknown = [name for name in internal if name.encode() not in text]
    assert unknown == [], "Ray no longer has these settings (ray_config_def.h)"


def test_ray_ends_a_cluster_a_minute_after_it_has_lost_its_gcs() -> None:
    from ray._private import services

    assert b"gcs_rpc_server_reconnect_timeout_s" in Path(services.RAYLET_EXECUTABLE).read_bytes()
    assert WITHOUT_HEAD_S == 60.0


def test_a_placement_group_of_one_bundle_can_be_aimed_at_a_node() -> None:
    from ray.util.placement_group import placement_group

    assert "_soft_target_node_id" in inspect.signature(placement_group).parameters


def test_what_we_replace_or_switch_off_in_ray_is_there() -> None:
    from ray._private import ray_constants, worker

    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool), "the switch that keeps a loopback address is gone"
    assert list(inspect.signature(worker.listen_error_messages).parameters) == ["worker", "threads_stopped"]
    assert "SIGTERM handler is not set" in inspect.getsource(worker), "the warning that we suppress has other words"
    assert worker.logger.name == "ray._private.worker", "the logger of the warning has another name"


def test_the_accelerator_manager_names_the_mask_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    show_gpus(("1", "2"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"


def test_the_numbers_of_protobuf_enumerations_are_ours() -> None:
    assert autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION") == gcs.PREEMPTION
    assert gcs_pb2.GcsNodeInfo.GcsNodeState.Value("ALIVE") == gcs._ALIVE


def test_a_death_cause_has_the_fields_that_tell_a_node_from_a_process() -> None:
    fields = set(common_pb2.ActorDeathCause.DESCRIPTOR.fields_by_name)
    assert {"oom_context", "actor_died_error_context"} <= fields
    reasons = set(common_pb2.ActorDiedErrorContext.Reason.keys())
    assert {"WORKER_DIED", "NODE_DIED", "RAY_KILL"} <= reasons
    assert "death_cause" in gcs_pb2.ActorTableData.DESCRIPTOR.fields_by_name


def test_exceptions_for_the_ends_of_workers_have_their_types_and_fields() -> None:
    assert issubclass(exceptions.ActorDiedError, exceptions.RayActorError)
    assert issubclass(exceptions.ActorUnavailableError, exceptions.RayActorError)
    died = exceptions.ActorDiedError(common_pb2.ActorDiedErrorContext(actor_id=b"\1" * 16, error_message="why"))
    assert (died.actor_id, died.preempted) == ("01" * 16, False)
    assert "why" in str(died), "the exception no longer has the words of the death cause"


def test_the_words_that_tell_a_death_if_nothing_else_does_are_those_of_the_libraries() -> None:
    from ray._private import services

    core = Path(services.RAYLET_EXECUTABLE).read_bytes() + Path(services.GCS_SERVER_EXECUTABLE).read_bytes()
    core += Path(str(ray._raylet.__file__)).read_bytes()
    for words in ("its node has died", "worker process has died", "running low on memory", "exit code "):
        assert words.encode() in core, f"Ray no longer says {words!r}"


def test_nodes_take_the_labels_that_our_documents_show() -> None:
    from ray._private.label_utils import parse_node_labels_string
    from ray.scripts.scripts import start

    assert "--labels" in {option for parameter in start.params for option in parameter.opts}
    assert parse_node_labels_string("rack=r7,zone=eu-1a") == {"rack": "r7", "zone": "eu-1a"}
    keys = {str(value) for name, value in vars(ray._raylet).items() if name.startswith("RAY_NODE_")}
    read = {key for keys in SOURCES.values() for key in keys if key.startswith("ray.io/")}
    assert read <= keys, "Ray has other keys for the labels of a cloud"


# On a cluster.


def test_nodes_are_listed_with_resources_and_labels(cluster: LocalCluster) -> None:
    first, second = cluster.nodes()
    assert live_nodes.HEAD_RESOURCE in first.total
    assert (second.total["CPU"], second.free["CPU"], second.address) == (1.0, 1.0, "127.0.0.1")
    assert LABELS.items() <= second.labels.items(), "labels of `--labels` do not arrive in ray.nodes()"
    assert (second.labels["rack"], second.labels["zone"]) == ("r7", "eu-1a")
    assert cluster.labels([second.node_id, "unknown"]) == {second.node_id: second.labels, "unknown": {}}
    assert "rack" not in first.labels


def test_the_gcs_answers_about_nodes_within_a_time(cluster: LocalCluster) -> None:
    connection = GcsConnection.to(cluster.address)
    assert [node.alive for node in connection.nodes(timeout_s=5.0)] == [True, True]
    assert len(connection.cluster_id) == 56
    assert connection.draining(timeout_s=5.0) == {}
    assert not GcsConnection.of_this_process().has_autoscaler()


def test_the_keys_by_which_an_autoscaler_is_recognised_are_ray_s_own() -> None:
    from ray._private import ray_constants

    values = {str(value) for value in (*vars(ray_constants).values(), *vars(ray._raylet).values())}
    assert "__autoscaling_error" in values, "the key at which an autoscaler reports errors has another name"
    assert "__autoscaler_v2_enabled" in values, "the key at which autoscaler v2 reports has another name"


def test_processes_are_named_as_we_look_for_them(cluster: LocalCluster, victim: Any) -> None:
    pid = ray.get(victim.pid.remote())
    assert is_worker(pid), "the title of a worker's process no longer begins with ray::"
    raylet = raylet_of(pid)
    assert raylet.pid in {process.pid for process in cluster.processes[1:]}
    assert pid in {process.pid for process in descendants(raylet.pid)}
    assert [is_head(psutil.Process(process.pid)) for process in cluster.processes[1:]] == [True, False]
    ids = {node_id_of(psutil.Process(process.pid)) for process in cluster.processes[1:]}
    assert ids == {node.node_id for node in cluster.nodes()}


def test_a_worker_knows_where_its_node_keeps_logs(cluster: LocalCluster, victim: Any) -> None:
    assert ray.get(victim.logs.remote()) == str(cluster._files.logs if cluster._files else None)


def test_a_reservation_goes_to_the_node_it_is_aimed_at(cluster: LocalCluster) -> None:
    for node in cluster.nodes():
        group = group_on(node.node_id, {"CPU": 1.0})
        assert group.wait(PATIENCE_S)
        assert node_of(group) == node.node_id, "_soft_target_node_id is ignored"
        placed_s = placed_after_s(group)
        assert placed_s is not None, "Ray no longer says how long a placement group waited for its node"
        assert 0.0 < placed_s < PATIENCE_S
        release([group])


def ended(ref: Any) -> Exception:
    with pytest.raises(exceptions.RayError) as caught:
        ray.get(ref, timeout=PATIENCE_S)
    return caught.value


def test_a_killed_process_is_told_by_the_recorded_cause(victim: Any) -> None:
    pid, running = ray.get(victim.pid.remote()), victim.sleep.remote()
    os.kill(pid, signal.SIGKILL)
    error = ended(running)
    assert isinstance(error, exceptions.ActorDiedError)
    cause = worker_death._recorded_cause(error)
    assert cause is not None, "the GCS no longer tells the cause of an actor's death"
    assert worker_death._kind_by_cause(cause) is DeathKind.PROCESS_DIED
    assert worker_death._kind_by_words(str(error)) is DeathKind.PROCESS_DIED
    assert worker_death.worker_death(error).exit_code is None


def test_an_exit_code_is_told_in_words(victim: Any) -> None:
    error = ended(victim.leave.remote(3))
    death = worker_death.worker_death(error)
    assert (death.kind, death.exit_code) == (DeathKind.PROCESS_DIED, 3), str(error)


def test_a_process_that_ray_kills_died_like_any_other(victim: Any) -> None:
    running = victim.sleep.remote()
    ray.kill(victim)
    assert worker_death.worker_death(ended(running)).kind is DeathKind.PROCESS_DIED


def test_the_recorded_cause_does_not_delay_a_recovery_if_the_gcs_is_silent(cluster: LocalCluster) -> None:
    died = exceptions.ActorDiedError(
        common_pb2.ActorDiedErrorContext(actor_id=b"\1" * 16, error_message="its node has died")
    )
    cluster.processes[0].send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        death = worker_death.worker_death(died)
        seconds = time.monotonic() - started
    finally:
        cluster.processes[0].send_signal(signal.SIGCONT)
    assert death.kind is DeathKind.NODE_DIED
    assert seconds < worker_death.RECORD_TIMEOUT_S + 0.7, "Ray no longer keeps to the limit of a question"


def test_a_node_can_be_announced_to_go(cluster: LocalCluster) -> None:
    second = cluster.nodes()[1].node_id
    connection = GcsConnection.to(cluster.address)
    keeper = ray.remote(num_cpus=1)(Victim)  # a draining node on which nothing runs ends itself
    group = group_on(second, {"CPU": 1.0})
    assert group.wait(PATIENCE_S)
    actor = keeper.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0)).remote()
    pid, running = ray.get(actor.pid.remote()), actor.sleep.remote()
    before_s = time.time()
    assert connection.drain(second, 60.0, "a test takes it away", timeout_s=5.0) is None
    deadline = time.monotonic() + 3.0
    while not (announced := connection.draining(timeout_s=5.0)) and time.monotonic() < deadline:
        time.sleep(0.05)  # it is asked once a second
    assert list(announced) == [second], "the GCS does not list a node that is draining"
    assert announced[second] == pytest.approx(before_s + 60.0, abs=5.0)
    assert second not in {node.node_id for node in cluster.nodes()}, "a draining node still counts as usable"
    raylet = raylet_of(pid)
    for process in [raylet, *descendants(raylet.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has died with its raylet
            process.kill()
    error = ended(running)
    assert worker_death.worker_death(error).kind is DeathKind.NODE_DIED, str(error)
