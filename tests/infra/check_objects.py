"""Checks Kubernetes objects (YAML on standard input) by their schemas; says what is wrong with which.

Runs in an environment of its own. Kubernetes' own kinds are checked by kubernetes-validate, those of
Knative and KEDA by the schemas of models that were made of their CRDs, closed to unknown fields.
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
SEEN_ELSEWHERE = {"InterceptorRoute"}  # no package has its schema


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


def main() -> int:
    faults = []
    for each in yaml.safe_load_all(sys.stdin):
        if each is None:
            continue
        name = f"{each['kind']}/{each['metadata']['name']}"
        model = MODELS.get((each["apiVersion"], each["kind"]))
        try:
            if model is not None:
                schema = closed(model.model_json_schema())
                errors = jsonschema.Draft202012Validator(schema).iter_errors(each)
                if (error := jsonschema.exceptions.best_match(errors)) is not None:
                    faults.append(f"{name}: {error.json_path}: {error.message}")
            elif each["kind"] not in SEEN_ELSEWHERE:
                kubernetes_validate.validate(each, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults.append(f"{name}: {error}")
        print(name)
    print(*faults, sep="\n", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
