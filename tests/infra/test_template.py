"""template.yaml and the other CloudFormation, by AWS's own linter and SAM's own translator."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from parts import venv
from support import ROOT

TOOLS = ("cfn-lint==1.58.0", "aws-sam-translator==1.115.0")
# What the linter does not know yet, after
# https://docs.aws.amazon.com/lambda/latest/api/API_AcceleratorConfig.html
ACCELERATOR = {
    "type": "object",
    "properties": {"AcceleratorMemorySize": {"type": "integer", "enum": [3, 6, 12, 16, 24, 48]}},
    "required": ["AcceleratorMemorySize"],
    "additionalProperties": False,
}
TOLD = {
    "Patches": {
        "AWS::Lambda::Function": [
            {"op": "add", "path": "/properties/AcceleratorConfig", "value": ACCELERATOR}
        ]
    }
}
TRANSFORM = """
import json, sys
from samtranslator.model.exceptions import InvalidDocumentException
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

class Policies:  # managed policies by name, of which the template has none
    def load(self):
        return {}

source = yaml_parse(open(sys.argv[1]).read())
try:
    print(json.dumps({"source": source, "made": transform(source, {}, Policies())}))
except InvalidDocumentException as error:
    sys.exit("\\n".join(cause.message for cause in error.causes))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return venv(*TOOLS)


def lint(python: Path, *arguments: object) -> str:
    command = [str(python.with_name("cfn-lint")), *map(str, arguments)]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    return run.stdout + run.stderr if run.returncode else ""


@pytest.fixture(scope="module")
def resources(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What CloudFormation makes of template.yaml, by logical id."""
    run = subprocess.run(
        [str(python), "-c", TRANSFORM, str(ROOT / "template.yaml")],
        check=False,
        capture_output=True,
        text=True,
        env={"AWS_DEFAULT_REGION": "eu-west-1"},
    )
    assert run.returncode == 0, run.stderr
    made = json.loads(run.stdout)["made"]
    path = tmp_path_factory.mktemp("sam") / "made.json"
    path.write_text(json.dumps(made))
    # W1030: subnets and groups are empty unless instances are managed; a rule of the source says so
    assert lint(python, "--ignore-checks", "W1030", "--", path) == ""
    found: dict[str, Any] = made["Resources"]
    return found


def only(resources: dict[str, Any], kind: str, condition: str | None = None) -> dict[str, Any]:
    """The properties of the one resource of a type, under a condition."""
    (found,) = (
        each["Properties"]
        for each in resources.values()
        if each["Type"] == kind and each.get("Condition") == condition
    )
    return dict(found)


def test_the_linter_finds_nothing(python: Path) -> None:
    other = ROOT / "infra" / "embed" / "sagemaker-template.yaml"
    assert lint(python, ROOT / "template.yaml", other) == ""


@pytest.mark.parametrize(
    "written, then, said",
    [
        ("AcceleratorMemorySize: 3", "AcceleratorMemorySize: 3", ""),
        ("AcceleratorMemorySize: 3", "AcceleratorMemorySize: 5", "5 is not one of"),
        ("AcceleratorConfig:", "AcceleratorConfigs:", "'AcceleratorConfigs' was unexpected"),
    ],
)
def test_only_the_accelerator_is_unknown_to_the_linter(
    python: Path, tmp_path: Path, written: str, then: str, said: str
) -> None:
    """The template ignores E3002 in its GPU function; with that one property told, it need not."""
    text = (ROOT / "template.yaml").read_text()
    assert "[E1010, E3002]" in text and written in text
    (tmp_path / "template.yaml").write_text(
        text.replace("[E1010, E3002]", "[E1010]").replace(written, then)
    )
    (tmp_path / "told.json").write_text(json.dumps(TOLD))
    found = lint(
        python, "--override-spec", tmp_path / "told.json", "--", tmp_path / "template.yaml"
    )
    assert said in found and bool(found) == bool(said)


@pytest.mark.parametrize("condition", ["OnDemand", "Managed", "Gpu"])
def test_each_kind_streams_and_reports_which_messages_failed(
    resources: dict[str, Any], condition: str
) -> None:
    function = only(resources, "AWS::Lambda::Function", condition)
    assert function["PackageType"] == "Image" and function["Architectures"] == ["x86_64"]
    variables = function["Environment"]["Variables"]
    assert variables["ZEROWAKE_LAMBDA_INVOKE_MODE"] == "RESPONSE_STREAM"
    assert only(resources, "AWS::Lambda::Url", condition)["InvokeMode"] == "RESPONSE_STREAM"
    trigger = only(resources, "AWS::Lambda::EventSourceMapping", condition)
    assert trigger["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert trigger["BatchSize"] == 8  # two batches of the example
    queue = resources["Queue"]["Properties"]
    assert queue["VisibilityTimeout"] >= 6 * function["Timeout"] > 6 * 30
    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": ["DeadLetters", "Arn"]}


@pytest.mark.parametrize("condition", ["Managed", "Gpu"])
def test_managed_instances_go_down_to_none_and_batch(
    resources: dict[str, Any], condition: str
) -> None:
    function = only(resources, "AWS::Lambda::Function", condition)
    config = function["CapacityProviderConfig"]["LambdaManagedInstancesCapacityProviderConfig"]
    assert config["PerExecutionEnvironmentMaxConcurrency"] == 8
    assert function["MemorySize"] >= 2048
    version = only(resources, "AWS::Lambda::Version", condition)  # only versions run there
    for scaling in (function["FunctionScalingConfig"], version["FunctionScalingConfig"]):
        assert scaling["MinExecutionEnvironments"] == 0
    is_gpu = condition == "Gpu"
    assert (function.get("AcceleratorConfig") is not None) == is_gpu
    if is_gpu:
        assert function["AcceleratorConfig"] == {"AcceleratorMemorySize": 3}


def test_cold_starts_are_counted_and_alarmed(resources: dict[str, Any]) -> None:
    metrics = {
        (each["MetricNamespace"]["Fn::Sub"], each["MetricName"])
        for resource in resources.values()
        if resource["Type"] == "AWS::Logs::MetricFilter"
        for each in resource["Properties"]["MetricTransformations"]
    }
    (metric,) = metrics
    alarms = [
        each["Properties"]
        for each in resources.values()
        if each["Type"] == "AWS::CloudWatch::Alarm"
    ]
    watched = [a for a in alarms if a["MetricName"] == metric[1]]
    assert {a["Namespace"]["Fn::Sub"] for a in watched} == {metric[0]}
    assert {a.get("Statistic") or a["ExtendedStatistic"] for a in watched} == {"SampleCount", "p90"}
    for condition in ("OnDemand", "Managed", "Gpu"):
        logging = only(resources, "AWS::Lambda::Function", condition)["LoggingConfig"]
        assert logging["LogFormat"] == "JSON" and logging["LogGroup"] == {"Ref": "Logs"}
