"""The chart's schema of router.settings, made of the contract's structs: `python tests/charts/settings_schema.py` writes it."""

import json
from pathlib import Path
from typing import Any

import msgspec

from quire_contract.router_settings import RouterSettingsEntry

SCHEMA = Path(__file__).parents[2] / "charts" / "quire" / "values.schema.json"
_ROOT = RouterSettingsEntry.__name__


def definitions() -> dict[str, Any]:
    """By name, as values.schema.json refers to them."""
    _, found = msgspec.json.schema_components([RouterSettingsEntry], ref_template="#/definitions/{name}")
    return {name: _plain(found[name]) for name in sorted(found)}


def with_settings(schema: dict[str, Any]) -> dict[str, Any]:
    """The chart's schema as it should be."""
    properties = schema["properties"]["router"]["properties"]
    kept = {name: node for name, node in schema["definitions"].items() if name[:1].islower()}
    return {
        **schema,
        "properties": {
            **schema["properties"],
            "router": {
                **schema["properties"]["router"],
                "properties": {**properties, "settings": {"$ref": f"#/definitions/{_ROOT}"}},
            },
        },
        "definitions": {**kept, **definitions()},
    }


def _plain(node: Any) -> Any:
    """Without titles and defaults; numbers are not negative, as `settings_problem` demands."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _plain(item) for key, item in node.items() if key not in ("title", "default", "description")}
    if "properties" in node:
        plain["properties"] = {key: _plain(item) for key, item in node["properties"].items()}
    if plain.get("type") in ("integer", "number"):
        plain["minimum"] = 0
    return plain


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(with_settings(json.loads(SCHEMA.read_text())), indent=2, ensure_ascii=False) + "\n")
