"""The files in cluster/, checked without a cloud: by Ray, botocore, Kubernetes' schemas, hadolint, jobs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv
from ray.scripts.scripts import start

from galray.core.config import parse
from tests.integration import services

CLUSTER = services.REPOSITORY / "cluster"
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
CRDS = Path(os.environ.get("GALRAY_KUBERAY_CRDS", services.REPOSITORY / "../shared/kuberay"))
JOBS = ("ingest", "train", "classify", "tune", "study", "synthesize", "scan")
RAY_VERSION = re.search(
    r"^ray\[.*\]==(\S+)$", (services.REPOSITORY / "requirements-gpu.txt").read_text(), re.MULTILINE
)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def ray_cluster() -> dict[str, Any]:
    return next(d for d in documents(CLUSTER / "kuberay/cluster.yaml") if d["kind"] == "RayCluster")


def pod_templates(resource: Any) -> list[dict[str, Any]]:
    """Return every pod template in a resource, however deep."""
    if isinstance(resource, list):
        return [found for item in resource for found in pod_templates(item)]
    if not isinstance(resource, dict):
        return []
    own = [resource["template"]] if "spec" in resource.get("template", {}) else []
    return own + [found for item in resource.values() for found in pod_templates(item)]


@pytest.fixture(params=["aws", "gcp"])
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster file as Ray completes it, read from where people run `ray up`."""
    monkeypatch.chdir(services.REPOSITORY)
    return prepare_config(yaml.safe_load((CLUSTER / f"{request.param}.yaml").read_text()))


def test_ray_accepts_the_cluster_files(config: dict[str, Any]) -> None:
    validate_config(config)
    for local in config["file_mounts"].values():
        assert local == "~/.ray/auth_token" or Path(local).exists()


def test_clusters_grow_from_nothing_and_prefer_spot(config: dict[str, Any]) -> None:
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert all(node["min_workers"] == 0 and node["max_workers"] > 0 for node in types.values())
    assert config["idle_timeout_minutes"] > 0
    spot, fallback = types["gpu-spot"], types["gpu-on-demand"]
    assert spot["resources"] == fallback["resources"]
    assert spot["priority"] > fallback["priority"]
    assert "spot" in json.dumps(spot["node_config"]).lower()
    assert "spot" not in json.dumps(fallback["node_config"]).lower()


def test_clusters_are_private_and_hold_no_keys(config: dict[str, Any]) -> None:
    options = " ".join(config["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options
    assert "RAY_USAGE_STATS_ENABLED=0" in options
    assert not re.search(r"(?i)secret|password|access_key", json.dumps(config))
    images = [config["docker"][name] for name in ("head_image", "worker_image")]
    assert all(image.startswith(f"rayproject/ray:{ray_version()}-") for image in images)
    inbound = config["provider"].get("security_group", {}).get("IpPermissions", [])
    assert inbound == []  # Ray's own: ssh, and all among the nodes
    for name, node in config["available_node_types"].items():
        role = node["node_config"].get("IamInstanceProfile") or node["node_config"]["serviceAccounts"]
        assert ("galray-head" if name == "head" else "galray-node") in json.dumps(role)


def ray_version() -> str:
    assert RAY_VERSION
    return RAY_VERSION[1]


def test_ray_start_knows_every_option(config: dict[str, Any]) -> None:
    known = {option for parameter in start.params for option in parameter.opts}
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    used = {word.split("=")[0] for c in commands for word in c.split() if word.startswith("--")}
    groups = [ray_cluster()["spec"]["headGroupSpec"], *ray_cluster()["spec"]["workerGroupSpecs"]]
    used |= {f"--{name}" for group in groups for name in group["rayStartParams"]}
    assert used <= known


def test_ec2_knows_every_option_of_a_node() -> None:
    operation = get_session().get_service_model("ec2").operation_model("RunInstances")
    for node in yaml.safe_load((CLUSTER / "aws.yaml").read_text())["available_node_types"].values():
        request = {"MinCount": 1, "MaxCount": 1, **node["node_config"]}
        assert not ParamValidator().validate(request, operation.input_shape).generate_report()


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kubernetes_accepts_every_resource_and_pod(path: Path) -> None:
    """What is Kubernetes' own; Ray's resources are below."""
    for document in documents(path):
        if not document["apiVersion"].startswith("ray.io"):
            kubernetes_validate.validate(document, "1.33", strict=True)
        for template in pod_templates(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
            kubernetes_validate.validate(pod, "1.33", strict=True)
            assert pod["spec"]["securityContext"]["runAsNonRoot"]
            for container in pod["spec"]["containers"]:
                assert not container["securityContext"]["allowPrivilegeEscalation"]
                assert re.search(r":\d[\w.-]+$", container["image"])


# The fields of KubeRay 1.7 that are used here, and what it takes there.
_STRING, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_STRINGS = {"type": "object", "additionalProperties": _STRING}
_GROUP = {"rayStartParams": _STRINGS, "template": {"type": "object"}}


def _closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_USED_FIELDS = {
    "RayCluster": _closed(
        ("headGroupSpec",),
        rayVersion=_STRING,
        authOptions=_closed(mode={"enum": ["disabled", "token"]}),
        enableInTreeAutoscaling={"type": "boolean"},
        autoscalerOptions=_closed(
            version={"enum": ["v1", "v2"]},
            upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
            idleTimeoutSeconds=_COUNT,
            resources={"type": "object"},
        ),
        headGroupSpec=_closed(("template",), serviceType=_STRING, **_GROUP),
        workerGroupSpecs={
            "type": "array",
            "items": _closed(
                ("groupName", "minReplicas", "maxReplicas", "template"),
                groupName=_STRING,
                priority=_COUNT,
                replicas=_COUNT,
                minReplicas=_COUNT,
                maxReplicas=_COUNT,
                **_GROUP,
            ),
        },
    ),
    "RayJob": _closed(clusterSelector=_STRINGS, entrypoint=_STRING),
}


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_only_known_fields_of_kuberay_are_used(path: Path) -> None:
    for document in documents(path):
        if document["apiVersion"].startswith("ray.io"):
            assert document["apiVersion"] == "ray.io/v1"
            jsonschema.validate(document["spec"], _USED_FIELDS[document["kind"]])


@pytest.mark.skipif(
    not CRDS.exists(), reason="no CRDs of KubeRay here; GALRAY_KUBERAY_CRDS names their folder"
)
@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_accepts_every_resource(path: Path) -> None:
    """Against the operator's own CRDs, with no field that they do not name."""
    for document in documents(path):
        if document["apiVersion"].startswith("ray.io"):
            crd_validator(document["kind"]).validate(document)


@cache
def crd_validator(kind: str) -> jsonschema.Draft202012Validator:
    crd = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_bytes(), yaml.CSafeLoader)
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    return jsonschema.Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    """Refuse unknown fields, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _strict(value) for name, value in schema.items()}
    if closed.pop("x-kubernetes-int-or-string", False):  # a quantity: 500m, or 2
        closed["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def test_ray_reads_the_kuberay_cluster() -> None:
    cluster = ray_cluster()
    cluster["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(config)
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu-spot"]["resources"]["GPU"] == types["gpu-on-demand"]["resources"]["GPU"] == 1
    assert types["gpu-spot"]["priority"] > types["gpu-on-demand"]["priority"]
    assert cluster["spec"]["rayVersion"] == ray_version()
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"
    assert cluster["spec"]["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("name", JOBS)
def test_jobs_take_the_options_of_their_ray_jobs(name: str) -> None:
    (document,) = documents(CLUSTER / f"kuberay/{name}.yaml")
    python, script, *options = shlex.split(document["spec"]["entrypoint"])
    assert (python, script) == ("python", f"/home/galray/jobs/{name}.py")
    assert document["spec"]["clusterSelector"] == {"ray.io/cluster": ray_cluster()["metadata"]["name"]}
    config = parse(presets_of(name), "", options)
    assert config.resume
    assert config.root.startswith("s3://")


def presets_of(name: str) -> Any:
    """Return the presets that jobs/<name>.py runs with."""
    script = (services.REPOSITORY / "jobs" / f"{name}.py").read_text()
    found = re.search(r"^from (galray\S+) import .*PRESETS", script, re.MULTILINE)
    assert found
    return import_module(found[1]).PRESETS


def test_the_linter_accepts_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "info", CLUSTER / "docker/Dockerfile"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_images_are_pinned_and_do_not_run_as_root() -> None:
    text = (CLUSTER / "docker/Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    names = {stage.split()[2]: stage for stage in stages}
    for name in ("cpu", "gpu", "mlflow"):
        assert re.findall(r"^USER (\S+)", names[name], re.MULTILINE)[-1] == "1000"
    outside = {stage.split()[0] for stage in stages} - names.keys()
    assert all(re.search(r":\d+\.\d+\.\d+-", image) for image in outside)
    assert not re.search(r"^(ADD|COPY) .*(https?://|secret|token|\.aws)", text, re.MULTILINE | re.IGNORECASE)
    pins = set(re.findall(r"[\w-]+==[\w.]+", text)) - {"psycopg2-binary==2.9.13"}
    assert pins <= set((services.REPOSITORY / "requirements-gpu.txt").read_text().split())


def test_the_runtime_environment_is_what_nodes_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ray job submit --runtime-env` reads it."""
    monkeypatch.chdir(services.REPOSITORY)
    declared = RuntimeEnv(**yaml.safe_load((CLUSTER / "runtime-env.yaml").read_text()))
    wanted = (services.REPOSITORY / "requirements-gpu.txt").read_text().splitlines()
    assert declared.pip_config()["packages"] == wanted


def test_node_requirements_are_those_of_the_project() -> None:
    """Those of gs:// too: a node's bucket may be Google's."""
    project = tomllib.loads((services.REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["gcs"]
    lines = (services.REPOSITORY / "requirements-gpu.txt").read_text().splitlines()
    assert sorted(wanted) == sorted(line for line in lines if not line.startswith("#"))
