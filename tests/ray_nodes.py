"""Ray's nodes on this machine, started so that a busy one may take its time.

Ray itself gives a node half a minute to be known, and dies where a helper that is to find a port by
itself has not found it within 15 seconds: no setting changes that, but given ports need no finding.
"""

from __future__ import annotations

import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from waiting import LONG_SECONDS, wait_for

LISTEN = "dashboard_agent_listen_port"
PORTS = (LISTEN, "metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
LONG_MILLISECONDS = f"{1000 * LONG_SECONDS:.0f}"
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nodes on the loopback address only
    "RAY_gcs_server_port_wait_time_s": f"{LONG_SECONDS:.0f}",
    "RAY_agent_register_timeout_ms": LONG_MILLISECONDS,
    "RAY_health_check_timeout_ms": LONG_MILLISECONDS,
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def start_nodes(count: int) -> Iterator[Any]:
    """A ray.cluster_utils.Cluster of nodes of one core on 127.0.0.1; the first is the head."""
    from ray._private import services
    from ray.cluster_utils import Cluster

    ask, wait, begin = services.get_node, services.wait_for_node, services.start_ray_process
    ports: dict[str, int] = {}

    def ask_once(*words: Any) -> Any:
        try:
            return ask(*words)
        except RuntimeError:  # it is not known yet
            return None

    def begin_process(command: list[str], kind: str, *words: Any, **options: Any) -> Any:
        if kind == "raylet":  # Ray tells this port to the node's helper alone
            command = [*command, f"--{LISTEN}={ports[LISTEN]}"]
        return begin(command, kind, *words, **options)

    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, as a socket's path must be
    options = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False,
               "node_ip_address": "127.0.0.1"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**SETTINGS, "RAY_TMPDIR": folder, "TMPDIR": folder}.items():
            patch.setenv(name, str(value))
        patch.setattr(services, "start_ray_process", begin_process)
        patch.setattr(services, "get_node", lambda *words: wait_for(lambda: ask_once(*words)))
        patch.setattr(services, "wait_for_node", lambda *words: wait(*words[:2], LONG_SECONDS))
        made = Cluster()
        try:
            for _ in range(count):
                ports.update(zip(PORTS, free_ports(len(PORTS)), strict=True))
                made.add_node(**options, **ports)
            yield made
        finally:
            made.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports at which nobody listens, and which the system gives to no outgoing connection."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found
