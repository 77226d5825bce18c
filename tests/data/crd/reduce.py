"""Writes the schemas of this folder from a custom resource definition: python reduce.py DEFINITION.yaml > NAME.json

Texts, status and fields that do not constrain are left out; a pod template becomes {"x-pod-template": true}, since
the tests check it with Kubernetes' own schema. Sources, both Apache-2.0:

* leaderworkerset.json: github.com/kubernetes-sigs/lws, commit 060ab4da17eea1f0865fcbd3236bb1075e2cea32,
  config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml
* raycluster.json: github.com/ray-project/kuberay, commit feeaf72facab4881ba2b179248bb67315634e229,
  ray-operator/config/crd/bases/ray.io_rayclusters.yaml
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

KEPT = {"type", "properties", "required", "items", "enum", "minimum", "maximum", "pattern", "additionalProperties"}
KEPT |= {"anyOf", "oneOf", "allOf", "minItems", "maxItems", "minLength", "maxLength"}
KEPT |= {"x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"}


def reduced(schema: Any) -> Any:
    """What of ``schema`` can refuse something."""
    if isinstance(schema, list):
        return [reduced(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inside = schema.get("properties", {})
    if "containers" in inside.get("spec", {}).get("properties", {}):
        return {"type": "object", "x-pod-template": True}
    fields = {key: reduced(value) for key, value in schema.items() if key in KEPT and key != "properties"}
    if inside:
        fields["properties"] = {name: reduced(value) for name, value in inside.items()}
    return fields


def main() -> None:
    """Prints the reduced schema of version v1."""
    definition = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    version = next(each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = reduced(version["schema"]["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    names = definition["spec"]["names"]
    sys.stdout.write(json.dumps({"kind": names["kind"], "group": definition["spec"]["group"], "schema": schema}) + "\n")


if __name__ == "__main__":
    main()
