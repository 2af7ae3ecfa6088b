"""The table of values in a chart's README, made of the comments in its values.yaml: `python tests/charts/values_table.py` writes it."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

CHARTS = Path(__file__).parents[2] / "charts"
BEGIN, END = "<!-- values: written by tests/charts/values_table.py -->\n", "<!-- end of values -->\n"
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")
_TEXT = re.compile(r"^ *# -- (.*)$")


def described(text: str) -> dict[tuple[str, ...], str]:
    """The description of each key that has one, by its path; a key is described by the line before it."""
    found: dict[tuple[str, ...], str] = {}
    path: list[str] = []
    said = None
    for line in text.splitlines():
        if key := _KEY.match(line):
            depth = len(key[1]) // 2
            path = [*path[:depth], key[2]]
            if said:
                found[tuple(path)] = said
        description = _TEXT.match(line)
        said = description[1] if description else None
    return found


def table(folder: Path) -> str:
    """The table as Markdown."""
    text = (folder / "values.yaml").read_text()
    values = yaml.safe_load(text)
    rows = [
        f"| `{'.'.join(path)}` | `{_shown(values, path)}` | {said.replace('|', '/')} |\n"
        for path, said in described(text).items()
    ]
    return "| Value | Default | Meaning |\n|---|---|---|\n" + "".join(rows)


def with_table(readme: str, folder: Path) -> str:
    """The README with the table as it should be."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table(folder)}{END}{after}"


def _shown(values: dict[str, Any], path: tuple[str, ...]) -> str:
    value: Any = values
    for key in path:
        value = value[key]
    return json.dumps(value)


if __name__ == "__main__":
    for chart in ("quire", "quire-crds"):
        readme = CHARTS / chart / "README.md"
        readme.write_text(with_table(readme.read_text(), CHARTS / chart))
