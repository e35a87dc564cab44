"""The services that the integration tests talk to, each a real one on free ports of this machine.

An S3 service (a single-node Ceph: one monitor, one object store daemon, the RADOS gateway), an MLflow
server, and a Ray cluster that takes submitted jobs. Each is stopped through its own processes.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from pyarrow import fs
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.data import DataContext

# One for this process, all that it starts and all clusters below: Ray keeps the first that it sees.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

REPOSITORY = Path(__file__).parents[2]
CEPH_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
S3_ACCESS_KEY = "galray-test-key"
S3_SECRET_KEY = "galray-test-secret"
_SETUP = (
    *("cluster_synced_files", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "head_start_ray_commands"),
    *("worker_setup_commands", "worker_start_ray_commands"),
)
_OBJECT_STORE_BYTES = 512 << 20
_STOP_S = 20
_STEP_S = 120

_CEPH_CONF = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port},v1:127.0.0.1:{mon_v1_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {folder}
keyring = {folder}/keyring
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon data avail crit = 1
mon data avail warn = 2
mon max pg per osd = 1000
auth allow insecure global id reclaim = false
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
bluestore block size = 10737418240
bluestore block create = true
osd memory target = 1073741824
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{s3_port} tcp_nodelay=1
rgw thread pool size = 32
"""


class ServiceError(RuntimeError):
    """A service that did not come up."""


def missing_programs() -> list[str]:
    """Return the programs that the S3 service needs and this machine lacks."""
    return [name for name in CEPH_PROGRAMS if shutil.which(name) is None]


@contextmanager
def s3_service(folder: Path) -> Iterator[str]:
    """Run an S3 service and give its endpoint URL; its one user has the keys above."""
    mon_port, mon_v1_port, s3_port = free_ports(3)
    fsid = str(uuid.uuid4())
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    conf = folder / "ceph.conf"
    ports = {"mon_port": mon_port, "mon_v1_port": mon_v1_port, "s3_port": s3_port}
    conf.write_text(_CEPH_CONF.format(folder=folder, fsid=fsid, **ports))
    ceph = ("--conf", str(conf))
    _make_ceph_keys(folder, fsid, f"[v2:127.0.0.1:{mon_port},v1:127.0.0.1:{mon_v1_port}]")
    with ExitStack() as daemons:
        maps = ("--monmap", folder / "monmap", "--keyring", folder / "keyring")
        _call("ceph-mon", *ceph, "--mkfs", "-i", "a", *maps)
        daemons.enter_context(_process(folder / "mon.out", "ceph-mon", *ceph, "-f", "-i", "a"))
        osd_id = str(uuid.uuid4())
        _call("ceph", *ceph, "--connect-timeout", "60", "osd", "new", osd_id)
        _call("ceph-osd", *ceph, "-i", "0", "--mkfs", "--osd-uuid", osd_id)
        daemons.enter_context(_process(folder / "osd.out", "ceph-osd", *ceph, "-f", "-i", "0"))
        _wait(lambda: b" 1 up" in _call("ceph", *ceph, "osd", "stat"), "the object store daemon", folder)
        gateway = ("radosgw", *ceph, "-f", "--name", "client.rgw")
        daemons.enter_context(_process(folder / "rgw.out", *gateway))
        endpoint = f"http://127.0.0.1:{s3_port}"
        _wait(lambda: _answers(endpoint), "the S3 gateway", folder)
        keys = ("--access-key", S3_ACCESS_KEY, "--secret-key", S3_SECRET_KEY)
        _call("radosgw-admin", *ceph, "user", "create", "--uid", "test", "--display-name", "test", *keys)
        yield endpoint


def s3_environment(endpoint: str, bucket: str) -> dict[str, str]:
    """Make a bucket, and return the variables that lead to the service."""
    bucket_maker = fs.S3FileSystem(
        access_key=S3_ACCESS_KEY,
        secret_key=S3_SECRET_KEY,
        endpoint_override=endpoint,
        region="us-east-1",
        allow_bucket_creation=True,
    )
    bucket_maker.create_dir(bucket)
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": S3_ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": S3_SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _make_ceph_keys(folder: Path, fsid: str, monitor: str) -> None:
    ring = folder / "keyring"
    _call("ceph-authtool", "--create-keyring", ring)
    everything = {"mon": "allow *", "osd": "allow *", "mgr": "allow *"}
    for name, caps in {
        "client.admin": everything,
        "mon.": {"mon": "allow *"},
        "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
        "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
    }.items():
        granted = [word for kind, right in caps.items() for word in ("--cap", kind, right)]
        _call("ceph-authtool", ring, "--gen-key", "-n", name, *granted)
    _call("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", monitor, folder / "monmap")


@contextmanager
def mlflow_service(folder: Path, port: int = 0) -> Iterator[str]:
    """Run an MLflow server over SQLite and give its URL; a free port is taken unless one is given."""
    port = port or free_ports(1)[0]
    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts"), "--workers", "1"),
    )
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _process(folder / "mlflow.out", *command, env=environment):
        _wait(lambda: _answers(f"http://127.0.0.1:{port}/health"), "the MLflow server", folder)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def gcs_service(folder: Path, bucket: str) -> Iterator[str]:
    """Run an emulator of Google Cloud Storage that holds one bucket, and give its URL."""
    (port,) = free_ports(1)
    command = (sys.executable, "-m", "tests.integration.gcs_emulator", str(port), bucket)
    with _process(folder / "gcs.out", *command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}):
        _wait(lambda: _answers(f"http://127.0.0.1:{port}/storage/v1/b"), "the GCS emulator", folder)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def local_ray(num_gpus: int = 0) -> Iterator[None]:
    """A Ray of two cores in this process; GPUs are there in name only."""
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=num_gpus,
        include_dashboard=False,
        object_store_memory=256 << 20,
        logging_level=logging.ERROR,
    )
    DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()
    with warnings.catch_warnings():  # Ray leaves its children's handles to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@contextmanager
def ray_cluster(
    folder: Path,
    environment: Mapping[str, str],
    *options: str,
    port: int = 0,
    cpus: int = 2,
    workers: int = 0,
) -> Iterator[dict[str, str]]:
    """Run a Ray head that takes jobs, and give the variables with which they are submitted.

    Its jobs see `environment`, as those of a real cluster see what its nodes are started with. `workers`
    more nodes of one core join it; `options` are further ones of ``ray start``. `folder` must be short:
    Ray puts Unix sockets below it.
    """
    dashboard_port, client_port, free_port = free_ports(3)
    port = port or free_port
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    head = (
        *("--head", "--port", str(port), "--dashboard-port", str(dashboard_port)),
        *("--ray-client-server-port", str(client_port), "--num-cpus", str(cpus)),
        *("--temp-dir", str(folder / "ray"), "--disable-usage-stats", *options),
    )
    programs = (
        f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the `python` of a submitted job is ours
    )
    stop = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}  # for a stopped job's last words, as in cluster/aws.yaml
    variables = {**os.environ, **environment, **access, **stop, "PATH": programs}
    with ExitStack() as nodes:
        nodes.enter_context(_ray_node(folder / "ray.out", variables, *head))
        address = f"http://127.0.0.1:{dashboard_port}"
        _wait(lambda: _answers(f"{address}/api/version", access["RAY_AUTH_TOKEN"]), "the Ray head", folder)
        gcs = f"{ray.util.get_node_ip_address()}:{port}"
        for i in range(workers):
            nodes.enter_context(worker_node(folder / f"worker-{i}.out", variables, gcs))
        yield {**access, "RAY_API_SERVER_ADDRESS": address, "GALRAY_TEST_GCS": gcs}


def worker_node(output: Path, variables: Mapping[str, str], gcs: str) -> AbstractContextManager[None]:
    """A node of one core that is part of a cluster until the end of the block; its files are its own.

    In a folder that it shared, it would unpack a job's files anew beneath those who work there.
    """
    options = ("--address", gcs, "--num-cpus", "1", "--temp-dir", str(output.with_suffix("")))
    return _ray_node(output, variables, *options)


def _ray_node(output: Path, variables: Mapping[str, str], *options: str) -> AbstractContextManager[None]:
    agent_port, metrics_port = free_ports(2)
    command = (
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        *("--dashboard-agent-listen-port", str(agent_port), "--metrics-export-port", str(metrics_port)),
        *("--object-store-memory", str(_OBJECT_STORE_BYTES), *options),
    )
    return _process(output, *command, env=variables)


@contextmanager
def autoscaling_ray_cluster(folder: Path, node_types: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Run a Ray head without cores that starts and ends nodes of `node_types` as jobs need them.

    Each node is a real raylet on this machine, which claims its type's cores and GPUs in name only.
    """
    (port,) = free_ports(1)
    config = {
        "cluster_name": "galray",
        "max_workers": sum(node["max_workers"] for node in node_types.values()),
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "external",  # so named, for the wheel lacks the defaults of "fake_multinode"
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"{ray.util.get_node_ip_address()}:{port}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **node_types,
        },
        **{name: {} for name in ("auth", "file_mounts")},
        **{name: [] for name in _SETUP},
    }
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(config))
    environment = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    scaling = f"--autoscaling-config={file}"
    with ray_cluster(folder, environment, scaling, port=port, cpus=0) as access:
        yield access


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _process(output: Path, *command: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run a program until the end of the block; what it says goes to `output`."""
    with (
        open(output, "wb") as out,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=output.parent,
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _call(*command: str | Path) -> bytes:
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=_STEP_S)
    if done.returncode:
        raise ServiceError(f"{' '.join(map(str, command))}: {done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout


def _answers(url: str, token: str = "") -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError:
        return not token
    except OSError:
        return False


def _wait(ready: Callable[[], bool], what: str, folder: Path) -> None:
    deadline_s = time.monotonic() + _STEP_S
    while not ready():
        if time.monotonic() > deadline_s:
            said = "\n".join(
                f"{p.name}: {p.read_text(errors='replace')[-1000:]}" for p in folder.glob("*.out")
            )
            raise ServiceError(f"{what} did not come up within {_STEP_S} s.\n{said}")
        time.sleep(0.2)
