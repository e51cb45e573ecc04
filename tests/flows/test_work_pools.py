"""The base job templates of flows/deploy, held to what Prefect's workers take: the pool says where a run is."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from docker.types import HostConfig
from prefect.client.schemas.objects import FlowRun, WorkPool
from prefect.utilities.templating import apply_values, find_placeholders

from tests.flows.prefect_api import get

ROOT = Path(__file__).parents[2]
POOLS = ("docker", "kubernetes")
CREATE = (
    "prefect work-pool create trunkline --type docker --base-job-template flows/deploy/docker.json",
    "prefect work-pool create trunkline --type kubernetes --base-job-template flows/deploy/kubernetes.json",
)
GPU = {
    "docker": {
        "image": "trunkline:cuda",
        "device_requests": [{"driver": "nvidia", "count": 1, "capabilities": [["gpu"]]}],
    },
    "kubernetes": {"image": "registry.example/trunkline:cuda", "gpus": 1},
}
# Taken by prefect-docker since 0.6.4, after the description that Prefect 3.8.8 ships of it.
NEWER = {"docker": {"container_create_kwargs"}, "kubernetes": set()}

Template = dict[str, Any]


def template_of(pool: str) -> Template:
    found: Template = json.loads((ROOT / "flows" / "deploy" / f"{pool}.json").read_text())
    return found


def shipped(pool: str) -> Template:
    """The template that Prefect ships for such a pool."""
    import prefect.server.api.collections_data as data

    views = json.loads((Path(data.__path__[0]) / "views" / "aggregate-worker-metadata.json").read_text())
    found: Template = views[f"prefect-{pool}"][pool]["default_base_job_configuration"]
    return found


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    return found


def rendered(pool: str, **variables: Any) -> Any:
    """A run's configuration, as a worker makes it."""
    template = template_of(pool)
    properties = template["variables"]["properties"]
    defaults = {name: field["default"] for name, field in properties.items() if "default" in field}
    return apply_values(template["job_configuration"], defaults | variables, remove_notset=True)


@pytest.mark.parametrize("pool", POOLS)
def test_prefect_takes_the_template(pool: str) -> None:
    template = template_of(pool)
    WorkPool(name="trunkline", type=pool, base_job_template=template)
    unknown = {one.name for one in find_placeholders(template["job_configuration"])} ^ set(
        template["variables"]["properties"]
    )
    assert unknown == set()
    assert all(field["description"] for field in template["variables"]["properties"].values())


@pytest.mark.parametrize("pool", POOLS)
def test_the_worker_knows_every_key(pool: str) -> None:
    template, known = template_of(pool), shipped(pool)
    assert set(template["job_configuration"]) - set(known["job_configuration"]) == NEWER[pool]
    theirs = known["variables"]["properties"]
    for name, field in template["variables"]["properties"].items():
        if name in theirs:
            same = [key for key in ("type", "enum", "allOf") if field.get(key) != theirs[name].get(key)]
            assert same == [], name


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("deployment", deployments(), ids=lambda one: one["name"])
def test_a_deployment_fits_every_pool(pool: str, deployment: dict[str, Any]) -> None:
    from prefect.utilities.schema_tools import validate  # imports Prefect's database

    schema = template_of(pool)["variables"]
    variables = deployment["work_pool"]["job_variables"]
    assert set(variables) <= set(schema["properties"])
    validate(variables, schema, raise_on_error=True, ignore_required=False)
    validate(variables | GPU[pool], schema, raise_on_error=True, ignore_required=False)


def test_a_container_has_the_folder_and_the_gpu() -> None:
    plain, gpu = rendered("docker"), rendered("docker", **GPU["docker"])
    assert plain["volumes"] == ["/srv/trunkline:/srv/trunkline"]
    assert (plain["image"], gpu["image"]) == ("trunkline:cpu", "trunkline:cuda")
    asked = [
        HostConfig(version="1.43", init=more["init"], device_requests=more["device_requests"])
        for more in (plain["container_create_kwargs"], gpu["container_create_kwargs"])
    ]
    assert asked[0]["DeviceRequests"] == []
    [request] = asked[1]["DeviceRequests"]
    assert (request["Driver"], request["Count"], request["Capabilities"]) == ("nvidia", 1, [["gpu"]])


def test_a_pod_has_the_folder_and_the_gpu() -> None:
    [plain, gpu] = [
        rendered("kubernetes", **more)["job_manifest"]["spec"]["template"]["spec"] for more in ({}, GPU["kubernetes"])
    ]
    [volume], [mount] = plain["volumes"], plain["containers"][0]["volumeMounts"]
    assert volume["persistentVolumeClaim"] == {"claimName": "trunkline"}
    assert mount == {"name": volume["name"], "mountPath": "/srv/trunkline"}
    assert plain["containers"][0]["resources"]["limits"] == {"memory": "16Gi"}
    assert gpu["containers"][0]["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": 1}
    assert plain["securityContext"]["runAsUser"] == 1000


@pytest.mark.nightly
@pytest.mark.parametrize(("pool", "create"), list(zip(POOLS, CREATE, strict=True)))
def test_the_deployments_fit_a_pool_on_a_server(prefect_processes: Any, pool: str, create: str) -> None:
    """The commands of docs/schedule.md; the worker's package need not be where they are given."""
    run = prefect_processes.run
    run(create)
    run("prefect --no-prompt deploy --all")
    for deployment in deployments():
        made = get(prefect_processes.api, f"deployments/name/trunkline-score/{deployment['name']}")
        assert made["work_pool_name"] == "trunkline"
        assert made["job_variables"] == deployment["work_pool"]["job_variables"]
    assert get(prefect_processes.api, "work_pools/trunkline")["type"] == pool
    run("prefect --no-prompt work-pool delete trunkline")


@pytest.mark.nightly
@pytest.mark.parametrize("more", [{}, GPU["docker"]])
def test_dockers_worker_takes_it(prefect_server: None, more: dict[str, Any]) -> None:
    from prefect_docker.worker import DockerWorkerJobConfiguration

    made = asyncio.run(configuration(DockerWorkerJobConfiguration, "docker", more))
    assert made.image == more.get("image", "trunkline:cpu")
    assert made.volumes == ["/srv/trunkline:/srv/trunkline"]
    assert made.container_create_kwargs["device_requests"] == more.get("device_requests", [])
    assert made.command == "prefect flow-run execute"
    assert made.env["HF_HUB_OFFLINE"] == "1"


@pytest.mark.nightly
@pytest.mark.parametrize("more", [{}, GPU["kubernetes"]])
def test_kubernetes_worker_takes_it(prefect_server: None, more: dict[str, Any]) -> None:
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    made = asyncio.run(configuration(KubernetesWorkerJobConfiguration, "kubernetes", more))
    [container] = made.job_manifest["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == more.get("gpus")
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container["env"]


async def configuration(kind: Any, pool: str, more: dict[str, Any]) -> Any:
    """What the worker makes of a run of the first deployment."""
    variables = deployments()[0]["work_pool"]["job_variables"] | more
    made = await kind.from_template_and_values(template_of(pool), variables)
    made.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="a-run"))
    return made
