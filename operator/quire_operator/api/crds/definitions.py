"""A CustomResourceDefinition per kind, one YAML file each.

Structural schemas as apiextensions.k8s.io/v1 wants them: no references, no unions with null, no `additionalProperties: false`
(the API server prunes or, with strict field validation, refuses unknown fields by itself). This module must not know what the fields mean.
"""

from pathlib import Path
from typing import Any

import yaml

from quire_operator.api.base import NOT_YET_KEY
from quire_operator.api.resource import GROUP, VERSION, Kind
from quire_operator.api.validation import KINDS

HEADER = "# Generated from operator/quire_operator/api by `make crds`; do not edit.\n"
_KEPT = (
    "type",
    "format",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "multipleOf",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "anyOf",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)
_TYPE_NAMES = {"apiVersion", "kind"}

Schema = dict[str, Any]


def crd(kind: Kind) -> Schema:
    """The CustomResourceDefinition of one kind."""
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        "schema": {"openAPIV3Schema": resource_schema(kind)},
        "subresources": {"status": {}},
    }
    if kind.scale:
        version["subresources"]["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    names = {"kind": kind.kind, "listKind": f"{kind.kind}List", "plural": kind.plural, "singular": kind.singular}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {**names, "shortNames": list(kind.short_names), "categories": ["llm"]},
            "scope": "Namespaced",
            "preserveUnknownFields": False,
            "versions": [version],
        },
    }


def resource_schema(kind: Kind) -> Schema:
    """The structural schema of the whole resource."""
    raw = kind.model.model_json_schema(by_alias=True)
    schema = _structural(raw, raw.get("$defs", {}))
    schema["properties"]["metadata"] = {"type": "object"}
    for name in _TYPE_NAMES:
        schema["properties"][name] = {"type": "string"}
    schema["required"] = ["spec"]
    return schema


def crd_yaml(kind: Kind) -> str:
    """The file's text."""
    return HEADER + yaml.safe_dump(crd(kind), sort_keys=False, width=140, allow_unicode=True)


def write_crds(folder: Path) -> list[Path]:
    """Writes every kind's file into an existing or new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind in KINDS:
        path = folder / f"{GROUP}_{kind.plural}.yaml"
        path.write_text(crd_yaml(kind), encoding="utf-8")
        paths.append(path)
    return paths


def _column(column: Any) -> Schema:
    entry = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    return {**entry, "priority": column.priority} if column.priority else entry


def _structural(node: Schema, defs: Schema) -> Schema:
    node = _resolved(node, defs)
    schema: Schema = {}
    if "description" in node:
        schema["description"] = _described(node)
    schema.update({key: node[key] for key in _KEPT if key in node})
    if "const" in node:
        schema["enum"] = [node["const"]]
    if node.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if node.get("type") == "integer" and "enum" not in node:
        schema["format"] = "int32" if node.get("maximum", 2**63) < 2**31 else "int64"
    if "properties" in node:
        schema["properties"] = {key: _structural(value, defs) for key, value in node["properties"].items()}
    elif isinstance(node.get("additionalProperties"), dict):
        schema["additionalProperties"] = _structural(node["additionalProperties"], defs)
    if "items" in node:
        schema["items"] = _structural(node["items"], defs)
    default = node.get("default")
    if default not in (None, [], {}, ""):  # an API server of 1.20 takes an empty text for null and refuses the definition
        # An object's fields carry their own defaults; {} makes the API server apply them.
        schema["default"] = {} if "properties" in node else default
    return schema


def _resolved(node: Schema, defs: Schema) -> Schema:
    """The node with its reference followed and its `| null` removed; what stands beside a reference wins over the target."""
    while True:
        if "$ref" in node:
            target = defs[node["$ref"].rpartition("/")[2]]
            node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        elif "anyOf" in node and {"type": "null"} in node["anyOf"]:
            choices = [choice for choice in node["anyOf"] if choice != {"type": "null"}]
            assert len(choices) == 1, f"a union is not structural: {choices}"
            node = {**choices[0], **{key: value for key, value in node.items() if key != "anyOf"}}
        else:
            return node


def _described(node: Schema) -> str:
    text = " ".join(str(node["description"]).split())
    return f"{text} ({node[NOT_YET_KEY]})" if NOT_YET_KEY in node else text
