"""Every value of a chart is explained in its README."""

import pytest

from .chart import Chart
from .leaves import leaves
from .values_table import described, with_table


@pytest.mark.parametrize("kind", ["chart", "crds_chart"])
def test_the_table_is_that_of_values_yaml(kind: str, request: pytest.FixtureRequest) -> None:
    each: Chart = request.getfixturevalue(kind)
    readme = (each.folder / "README.md").read_text()

    assert readme == with_table(readme, each.folder), "run `python tests/charts/values_table.py`"


@pytest.mark.parametrize("kind", ["chart", "crds_chart"])
def test_every_value_has_a_description(kind: str, request: pytest.FixtureRequest) -> None:
    each: Chart = request.getfixturevalue(kind)
    known = described((each.folder / "values.yaml").read_text())

    assert [
        path for path, _ in leaves(each.values) if not any(path[:end] in known for end in range(1, len(path) + 1))
    ] == []
