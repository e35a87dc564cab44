"""A scan for which a cluster grows from nothing to three GPU nodes and back, as cluster/aws.yaml has it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from galray.classifier.network import ClassifierConfig
from galray.core.manifest import Manifest
from galray.core.storage import open_location
from tests.integration import services
from tests.integration.processes import JobProcess
from tests.integration.test_scan import SIZE_PX, catalogue_of, make_survey, published_classifier

GPUS = 3
TYPES = {"cpu": 2, "gpu-spot": 2, "gpu-on-demand": 2}  # and how many nodes of each there may be
_BACK_S = 90.0
pytestmark = [  # of Ray's own, which runs in this process too
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


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


@pytest.fixture
def growing_cluster(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A head without cores, which this process and the jobs that it starts have joined."""
    types = {name: in_name_only(name, most) for name, most in TYPES.items()}
    (short_folder / "scaling").mkdir()
    with services.autoscaling_ray_cluster(short_folder / "scaling", types) as access:
        for name, value in {**access, "RAY_ADDRESS": access["GALRAY_TEST_GCS"]}.items():
            monkeypatch.setenv(name, value)
        ray.init(access["GALRAY_TEST_GCS"], logging_level=logging.ERROR, log_to_driver=False)
        yield
        ray.shutdown()


def nodes() -> dict[str, str]:
    """Return the types of the nodes that are there, by id; that of the head is empty."""
    return {
        node["NodeID"]: next((name for name in TYPES if name in node["Resources"]), "")
        for node in ray.nodes()
        if node["Alive"]
    }


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("growing_cluster")
def test_gpu_nodes_come_and_go_spot_first(tmp_path: Path) -> None:
    """A scan on three GPUs gets GPU nodes: spot ones, and once those are full an on-demand one.

    Ray's autoscaler at times counts the want of an actor twice, and adds a second one that goes idle.
    """
    survey, log = make_survey(tmp_path / "survey"), tmp_path / "log.txt"
    classifier = published_classifier(tmp_path, ClassifierConfig("resnet-tiny", SIZE_PX), seed=0)
    places = ("--catalogue", str(survey / "catalogue.parquet"), "--tiles", str(survey / "tiles"))
    options = ("--root", str(tmp_path), *places, "--classifier", classifier, "--rows-per-task", "8")
    assert list(nodes().values()) == [""]
    seen: dict[str, str] = {}
    job = JobProcess("scan", *options, "--gpus", str(GPUS), log=log)
    job.wait_for(lambda: seen.update(nodes()) or spot_first(seen))
    assert job.end() == 0, log.read_text()[-3000:]
    until_s = time.monotonic() + _BACK_S
    while list(nodes().values()) != [""]:
        seen |= nodes()
        assert time.monotonic() < until_s, nodes()
        time.sleep(0.5)
    assert spot_first(seen)  # and no more of them until the end
    counts = Manifest.read(open_location(str(tmp_path / "scan")), "scores").counts
    assert counts["rows_out"] == len(catalogue_of(survey))


def spot_first(seen: dict[str, str]) -> bool:
    """Say whether all spot nodes came, and on-demand ones for what they could not take."""
    found = Counter(seen.values())
    return found["gpu-spot"] == TYPES["gpu-spot"] and found["gpu-on-demand"] >= 1
