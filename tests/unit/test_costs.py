"""What a survey costs: reckoned by hand, for the machines of cluster/aws.yaml, and as the README shows it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cluster.costs import CLUSTERS, CPU, GPU, HEAD, RATES, Machine, Rates, cost, table
from galray.core.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
RESULTS = (REPOSITORY / "docs/results.md").read_text()
AWS = yaml.safe_load((REPOSITORY / "cluster/aws.yaml").read_text())["available_node_types"]
MACHINE = Machine("m", cores=4, gpus=0, on_demand_usd_per_h=1.0, spot_usd_per_h=0.25)
FREE_HEAD = replace(MACHINE, on_demand_usd_per_h=0.0)


def test_hours_and_dollars_by_hand() -> None:
    taken = cost(7200_000, 1000, MACHINE, count=2, head=replace(MACHINE, on_demand_usd_per_h=0.5))
    assert (taken.hours, taken.on_demand_usd, taken.spot_usd) == (1.0, 2.5, 1.0)


def test_more_machines_save_time_and_the_heads_wage_alone() -> None:
    one, ten = (cost(1e9, 1000, MACHINE, count, FREE_HEAD) for count in (1, 10))
    assert one.hours == pytest.approx(10 * ten.hours)
    assert one.on_demand_usd == pytest.approx(ten.on_demand_usd)
    assert cost(1e9, 1000, MACHINE, 1).on_demand_usd > cost(1e9, 1000, MACHINE, 10).on_demand_usd


def test_a_gpu_waits_for_its_cutouts_or_they_for_it() -> None:
    rates = Rates(ingest_per_core=5, scan_per_core=20, cutouts_per_core=100, scores_per_gpu=300)
    assert rates.ingest(MACHINE) == 20
    assert rates.scan(MACHINE) == 4 * 20
    assert rates.scan(replace(MACHINE, gpus=1)) == 300
    assert rates.scan(replace(MACHINE, gpus=2)) == 400


@pytest.mark.parametrize("wrong", [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_what_cannot_be_is_refused(wrong: tuple[int, int, int]) -> None:
    images, images_per_s, count = wrong
    with pytest.raises(ConfigError, match="at least 1 machine"):
        cost(images, images_per_s, MACHINE, count)


def test_the_machines_are_those_of_the_cluster_file() -> None:
    of_type = {node["node_config"]["InstanceType"]: node for node in AWS.values()}
    assert AWS["head"]["node_config"]["InstanceType"] == HEAD.name
    for machine in (CPU, GPU):
        resources = of_type[machine.name]["resources"]
        assert (resources["CPU"], resources.get("GPU", 0)) == (machine.cores, machine.gpus)
    assert dict(CLUSTERS) == {CPU: AWS["cpu"]["max_workers"], GPU: AWS["gpu-spot"]["max_workers"]}


def test_the_readme_shows_what_is_reckoned() -> None:
    shown = re.search(r"<!-- python -m cluster\.costs -->\n(.*?)\n\n", README, re.DOTALL)
    assert shown
    assert shown[1] == table()


def test_the_rates_are_those_that_are_said_to_be_measured() -> None:
    text = " ".join(RESULTS.split())
    assert f"{2 * RATES.ingest_per_core:,.0f} images/s with headers checked" in text
    cut, scanned = 2 * RATES.cutouts_per_core, 2 * RATES.scan_per_core
    assert f"{cut:,.0f} cutouts a second, or {scanned:,.0f} sources scanned" in text
    assert f"{RATES.scores_per_gpu:,} scores a second, is an **assumption**" in README
