"""Each platform's words for a function's needs: its steps, its limits, its files.

Decides; reads and writes nothing. What a platform's limits are is its documentation's, 2026-11.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zerowake.adapters.deploy.needs import Needs, step
from zerowake.runtime.errors import ConfigError

Values = dict[str, object]


@dataclass(frozen=True, slots=True)
class Place:
    """image: in a registry. url: where containers find the snapshot, a store's, or a folder that is
    mounted or in the image; "" where neither is known yet."""

    image: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform that ``zerowake deploy`` can write for.

    templates: file to write -> file of infra/ that it is rendered from. values: what these want.
    then: commands that deploy what was written. chart: whether the Helm chart goes with it. asks:
    whether its tool asks for image and URL where they are missing. reads: the stores that its
    containers may read by what the platform says who they are.
    """

    about: str
    templates: Mapping[str, str]
    values: Callable[[Needs, Place], Values]
    then: str
    chart: bool = False
    asks: bool = False
    reads: tuple[str, ...] = ()


def values(platform: str, needs: Needs, place: Place) -> Values:
    """What the templates of ``platform`` want. Raises ConfigError for what it cannot give."""
    return {
        "name": needs.name,
        "dns_name": needs.dns_name,
        "snapshot_name": needs.snapshot,
        "form": needs.form,
        "gpu": needs.gpu,
        "image": place.image,
        "url": place.url,
        "trust": ",".join(needs.trust),
        "trust_list": ", ".join(f'"{digest}"' for digest in needs.trust),
        "timeout_s": needs.timeout_s,
        "concurrency": needs.concurrency,
        "min_instances": needs.instances[0],
        "max_instances": needs.instances[1],
        "platform": platform,
        **PLATFORMS[platform].values(needs, place),
    }


# ---------------------------------------------------------------- AWS Lambda

INSIDE = "/opt/zerowake/snapshot"  # where the Dockerfiles have it
ONE_CORE_MB = 1769  # of Lambda on demand: below it a function has less than a core
ACCELERATOR_GIB = (3, 6, 12, 16, 24, 48)


def _lambda(needs: Needs, place: Place) -> Values:
    inside = place.url if place.url.startswith("/") else ""  # of the image
    url = "" if inside else place.url
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if url and not (url.startswith("s3://") and bucket and key):
        raise ConfigError(
            f"--url is {url!r}; Lambda takes the snapshot out of S3, s3://BUCKET/KEY, or out of "
            f"the image, {INSIDE} (bundle --with-snapshot)"
        )
    _at_most(needs, "timeout", needs.timeout_s, 900, "s", "set timeout_s= lower")
    more = "Lambda has no more; take another platform"
    _at_most(needs, "memory", needs.memory_mb, 32768, "MB", more)  # as given, not as rounded
    _at_most(needs, "disk", needs.disk_mb, 10240, "MB", more)
    managed_mb = step(needs.memory_mb, 1024, 2048)
    on_demand_mb = max(needs.memory_mb, ONE_CORE_MB)
    compute = "on-demand" if on_demand_mb <= 10240 else "managed"
    version = hashlib.sha256(" ".join([*needs.trust, place.image]).encode()).hexdigest()
    return {
        "compute": "gpu" if needs.gpu else compute,
        "inside": inside,
        "bucket": bucket,
        "key": key.strip("/"),
        "disk_mb": 512 if inside else max(512, needs.disk_mb),
        "lambda_memory_mb": min(on_demand_mb, 10240),
        "managed_memory_mb": managed_mb,
        "gpu_memory_mb": managed_mb,
        "accelerator_gib": accelerator_gib(needs),
        "gpu_types": "g6.xlarge, g6.2xlarge, g6.4xlarge"
        if accelerator_gib(needs) <= 24
        else "g6e.xlarge, g6e.2xlarge, g6e.4xlarge",
        "version_id": version[:8],
        "visibility_s": 6 * needs.timeout_s,
        "queue_batch": min(needs.concurrency, 10_000),
        "queue_concurrency": min(max(2, needs.instances[1]), 1000),
        "concurrency": min(needs.concurrency, 1600),
    }


def accelerator_gib(needs: Needs) -> int:
    """GiB of accelerator memory: the weights, a fifth more for calls, a GiB for CUDA's context.

    Raises ConfigError where a Lambda GPU has less.
    """
    wanted_gib = math.ceil(needs.weights_mb * 1.2 / 1024 + 1)
    if not needs.gpu:  # the GPU's resources are not deployed; the smallest keeps them valid
        return ACCELERATOR_GIB[0]
    _at_most(needs, "GPU memory", wanted_gib, ACCELERATOR_GIB[-1], "GiB", "take another platform")
    return next(size for size in ACCELERATOR_GIB if size >= wanted_gib)


# ---------------------------------------------------------------- Kubernetes


def _kubernetes(kind: str) -> Callable[[Needs, Place], Values]:
    def made(needs: Needs, place: Place) -> Values:
        if kind == "knative":  # the cluster's max-revision-timeout-seconds, unless raised
            _at_most(needs, "timeout", needs.timeout_s, 600, "s", "set timeout_s= lower")
        return {
            "kind": kind,
            "memory_mi": step(needs.memory_mb, 64),
            "cache_mi": step(needs.disk_mb, 256),
            "gpu_count": int(needs.gpu),
            "concurrency": min(needs.concurrency, 1000),
        }

    return made


# ---------------------------------------------------------------- Cloud Run


def _cloud_run(needs: Needs, place: Place) -> Values:
    _at_most(needs, "timeout", needs.timeout_s, 3600, "s", "set timeout_s= lower")
    # /tmp and /cache are memory there.
    fetched_mb = needs.disk_mb if "://" in place.url else 0
    memory_mi = step(needs.memory_mb + fetched_mb, 512, 16384 if needs.gpu else 512)
    _at_most(needs, "memory", memory_mi, 32768, "MiB", "Cloud Run has no more")
    # More memory wants more processors: 2 above 4 GiB, 4 above 8, 6 above 16, 8 above 24.
    steps = {4096: 1, 8192: 2, 16384: 4, 24576: 6, 32768: 8}
    cpus = next(cpus for most_mi, cpus in steps.items() if memory_mi <= most_mi)
    return {
        "memory_mi": memory_mi,
        "cpus": max(cpus, 4 if needs.gpu else 1),
        "concurrency": min(needs.concurrency, 1000),
        "fetched": "://" in place.url,
    }


# ---------------------------------------------------------------- SageMaker, Azure, RunPod, Vertex


def _sagemaker(needs: Needs, place: Place) -> Values:
    _at_most(needs, "timeout", needs.timeout_s, 60 + 5, "s", "SageMaker ends calls after 60 s")
    serverless_mb = step(needs.memory_mb, 1024, 1024)
    is_serverless = not needs.gpu and serverless_mb <= 6144
    return {
        "serverless": is_serverless,
        "serverless_mb": serverless_mb,
        "serverless_concurrency": min(needs.concurrency, 200),
        "instance_type": _instance_type(needs),
    }


def _instance_type(needs: Needs) -> str:
    """The smallest of a family that has the memory: GiB of the machine, or of its GPU."""
    sizes = {24: "ml.g6.xlarge", 48: "ml.g6e.xlarge"}
    gib = math.ceil(needs.weights_mb * 1.2 / 1024 + 1)
    if not needs.gpu:
        cpus = ("large", "xlarge", "2xlarge", "4xlarge")
        sizes = {8 << i: f"ml.m6i.{name}" for i, name in enumerate(cpus)}
        gib = math.ceil(needs.memory_mb / 1024) + 1  # the machine's own
    _at_most(needs, "memory", gib, max(sizes), "GiB", "name an instance type in the template")
    return next(name for size, name in sizes.items() if gib <= size)


def _azure(needs: Needs, place: Place) -> Values:
    _at_most(needs, "timeout", needs.timeout_s, 240, "s", "the ingress ends calls after 240 s")
    # A processor comes with 2 GiB, in halves; a GPU's profile has more than enough of both.
    halves = max(1, math.ceil(needs.memory_mb / 1024))
    if not needs.gpu:
        _at_most(needs, "memory", halves, 8, "GiB", "use a dedicated workload profile")
    return {
        "cpus": 4 if needs.gpu else halves / 2,
        "memory_gi": 28 if needs.gpu else halves,
        "start_failures": 30,
    }


def _runpod(*, queue: bool) -> Callable[[Needs, Place], Values]:
    def values(needs: Needs, place: Place) -> Values:
        return {
            "queue": queue,
            "queue_delay_s": 1,  # a worker is up in less: one more as soon as jobs wait for so long
            "disk_gb": step(needs.disk_mb, 1024, 5120) // 1024 + 5,
        }

    return values


def _vertex(needs: Needs, place: Place) -> Values:
    gib = math.ceil(needs.memory_mb / 1024) + 1
    machines = {8 << i: f"n2-standard-{2 << i}" for i in range(4)}
    _at_most(needs, "memory", gib, 64, "GiB", "name a machine type in what was written")
    machine = next(name for size, name in machines.items() if gib <= size)
    return {"machine": "g2-standard-4" if needs.gpu else machine}


def _at_most(needs: Needs, what: str, value: int, most: int, unit: str, remedy: str) -> None:
    if value > most:
        raise ConfigError(f"{needs.name}: {what} of {value} {unit}, at most {most} here; {remedy}")


_RUNPOD_FILES = {
    "template.json": "templates/runpod-template.json",
    "endpoint.json": "templates/runpod-endpoint.json",
}
_RUNPOD = (
    'curl https://rest.runpod.io/v1/templates -H "Authorization: Bearer $RUNPOD_API_KEY" '
    "--json @{out}/template.json, then /v1/endpoints with @{out}/endpoint.json and the "
    "templateId that it answered"
)
_HELM = "helm upgrade --install {dns_name} {out}/chart --values {out}/values.yaml"

PLATFORMS: dict[str, Platform] = {
    "lambda": Platform(
        "AWS Lambda, on demand, managed instances or GPU: a SAM template",
        {"template.yaml": "templates/lambda.yaml"},
        _lambda,
        "sam deploy --guided --capabilities CAPABILITY_IAM --template-file {out}/template.yaml",
        asks=True,
        reads=("s3",),
    ),
    "kubernetes": Platform(
        "a Deployment: the Helm chart and its values",
        {"values.yaml": "templates/helm-values.yaml"},
        _kubernetes("deployment"),
        _HELM,
        chart=True,
    ),
    "knative": Platform(
        "a Knative service: the Helm chart and its values",
        {"values.yaml": "templates/helm-values.yaml"},
        _kubernetes("knative"),
        _HELM,
        chart=True,
    ),
    "keda": Platform(
        "a Deployment that KEDA's HTTP add-on scales from none: the Helm chart and its values",
        {"values.yaml": "templates/helm-values.yaml"},
        _kubernetes("keda"),
        _HELM,
        chart=True,
    ),
    "cloud-run": Platform(
        "Google Cloud Run: a service",
        {"service.yaml": "templates/cloud-run.yaml"},
        _cloud_run,
        "gcloud run services replace {out}/service.yaml",
        reads=("gs", "gcs"),
    ),
    "sagemaker": Platform(
        "Amazon SageMaker, serverless where it fits: a CloudFormation template",
        {"template.yaml": "templates/sagemaker.yaml"},
        _sagemaker,
        "aws cloudformation deploy --stack-name {dns_name} --capabilities CAPABILITY_IAM "
        "--template-file {out}/template.yaml --parameter-overrides RoleArn=ROLE_ARN",
        reads=("s3",),
    ),
    "azure": Platform(
        "Azure Container Apps: an app",
        {"app.yaml": "templates/azure.yaml"},
        _azure,
        "az containerapp create --name {dns_name} --resource-group GROUP --environment ENVIRONMENT "
        "--yaml {out}/app.yaml",
        reads=("az", "abfs", "abfss"),
    ),
    "runpod": Platform(
        "RunPod serverless, load balancing: a template and an endpoint for its REST API",
        _RUNPOD_FILES,
        _runpod(queue=False),
        f"{_RUNPOD}; that an endpoint is a load balancer is chosen in the console",
    ),
    "runpod-queue": Platform(
        "RunPod serverless, jobs from its queue: a template and an endpoint for its REST API",
        _RUNPOD_FILES,
        _runpod(queue=True),
        _RUNPOD,
    ),
    "vertex": Platform(
        "Google Vertex AI: a model to upload and how to deploy it",
        {"model.json": "templates/vertex-model.json", "deployment.json": "templates/vertex-deployment.json"},
        _vertex,
        "curl -X POST https://REGION-aiplatform.googleapis.com/v1/projects/PROJECT/locations/REGION/"
        'models:upload -H "Authorization: Bearer $(gcloud auth print-access-token)" '
        "--json @{out}/model.json, then (gcloud ai endpoints create --region REGION --display-name "
        "{dns_name}) endpoints/ENDPOINT:deployModel with @{out}/deployment.json",
        reads=("gs", "gcs"),
    ),
}  # fmt: skip
