"""Checks Kubernetes objects (YAML on standard input) by their schemas; says what is wrong with which.

Runs in an environment of its own. Kubernetes' own kinds are checked by kubernetes-validate, those of
Knative and KEDA by the schemas of models that were made of their CRDs, closed to unknown fields. No
package has KEDA's InterceptorRoute: its schema is written here after its reference.
"""

import sys
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.knative_serving.serving.v1 import Service

VERSION = "1.34"
MODELS = {
    ("serving.knative.dev/v1", "Service"): Service,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
}
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
# metav1.Duration, as Go's time.ParseDuration reads it.
DURATION = {"type": "string", "pattern": r"^(0|([0-9]+(\.[0-9]+)?(h|m|s|ms|us|ns))+)$"}


def fields(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


# Without coldStart and status, which the chart does not write.
# https://github.com/kedacore/http-add-on/blob/main/config/crd/bases/http.keda.sh_interceptorroutes.yaml
INTERCEPTOR_ROUTE = fields(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion=TEXT,
    kind=TEXT,
    metadata={"type": "object"},
    spec=fields(
        "target",
        "scalingMetric",
        target={
            **fields("service", service=TEXT, port={**COUNT, "maximum": 65535}, portName=TEXT),
            "oneOf": [{"required": ["port"]}, {"required": ["portName"]}],
        },
        rules={
            "type": "array",
            "items": fields(
                hosts={"type": "array", "items": TEXT, "uniqueItems": True},
                paths={"type": "array", "items": fields("value", value=TEXT)},
                headers={
                    "type": "array",
                    "items": fields("name", name=TEXT, value={"type": "string"}),
                },
            ),
        },
        scalingMetric={
            **fields(
                concurrency=fields("targetValue", targetValue=COUNT),
                requestRate=fields(
                    "targetValue", targetValue=COUNT, window=DURATION, granularity=DURATION
                ),
            ),
            "minProperties": 1,
        },
        timeouts=fields(readiness=DURATION, request=DURATION, responseHeader=DURATION),
    ),
)


def closed(schema: Any) -> Any:
    """The same schema without room for properties that it does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    return made


def schema_of(version: str, kind: str) -> Any:
    """None for Kubernetes' own."""
    if (version, kind) == ("http.keda.sh/v1beta1", "InterceptorRoute"):
        return closed(INTERCEPTOR_ROUTE)
    model = MODELS.get((version, kind))
    return None if model is None else closed(model.model_json_schema())


def main() -> int:
    faults = []
    for each in yaml.safe_load_all(sys.stdin):
        if each is None:
            continue
        name = f"{each['kind']}/{each['metadata']['name']}"
        try:
            if (schema := schema_of(each["apiVersion"], each["kind"])) is not None:
                errors = jsonschema.Draft202012Validator(schema).iter_errors(each)
                if (error := jsonschema.exceptions.best_match(errors)) is not None:
                    faults.append(f"{name}: {error.json_path}: {error.message}")
            else:
                kubernetes_validate.validate(each, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults.append(f"{name}: {error}")
        print(name)
    print(*faults, sep="\n", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
