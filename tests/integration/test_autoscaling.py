"""A cluster grows from nothing to three GPU nodes and back, as cluster/aws.yaml has it, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.integration import services

GPUS = 3
TYPES = {"cpu": 2, "gpu-spot": 2, "gpu-on-demand": 2}  # and how many nodes of each there may be
_ASK_FOR_GPUS = f"""
import json, os, time
import galray, ray

class Where:  # what galray's scan asks for: an actor that holds a GPU
    def __call__(self, batch):
        time.sleep(0.5)
        return {{"node": [ray.get_runtime_context().get_node_id()] * len(batch["id"])}}

def nodes():
    return {{n["NodeID"]: n for n in ray.nodes() if n["Alive"]}}

ray.init(os.environ["GALRAY_TEST_GCS"], logging_level="ERROR", log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
before = len(nodes())
rows = ray.data.range(2000, override_num_blocks=1000)
used, seen = set(), {{}}
where = rows.map_batches(
    Where, batch_size=2, num_gpus=1, compute=ray.data.ActorPoolStrategy(size={GPUS})
)
for batch in where.iter_batches(batch_size=2):
    used |= set(batch["node"])
    seen |= nodes()
    if len(used) == {GPUS}:
        break
del where
started_s = time.monotonic()
while len(nodes()) > 1 and time.monotonic() - started_s < 60:
    time.sleep(0.5)
types = [[r for r in seen[node]["Resources"] if r in {list(TYPES)}] for node in used]
print(json.dumps({{"before": before, "after": len(nodes()), "used": types}}))
"""


def in_name_only(name: str, max_workers: int) -> dict[str, Any]:
    """Keep of a node type of cluster/aws.yaml what the autoscaler decides by; its nodes bear its name."""
    config = yaml.safe_load((services.REPOSITORY / "cluster/aws.yaml").read_text())
    node = config["available_node_types"][name]
    return {
        "resources": {**node["resources"], name: 1, "object_store_memory": 80 << 20},
        "priority": node.get("priority", 0),
        "max_workers": max_workers,
        "node_config": {},
    }


def test_gpu_nodes_come_and_go_spot_first(short_folder: Path) -> None:
    """Actors that hold GPUs get GPU nodes: spot ones, and once those are full an on-demand one."""
    types = {name: in_name_only(name, most) for name, most in TYPES.items()}
    (short_folder / "scaling").mkdir()
    with services.autoscaling_ray_cluster(short_folder / "scaling", types) as access:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_FOR_GPUS],
            env={**os.environ, **access},
            cwd=services.REPOSITORY,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert said["before"] == said["after"] == 1  # the head alone
    assert sorted(said["used"]) == [["gpu-on-demand"], ["gpu-spot"], ["gpu-spot"]]
