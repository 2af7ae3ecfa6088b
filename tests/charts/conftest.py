"""The two charts."""

from pathlib import Path

import pytest
from cluster.tools import Tools

from .chart import Chart

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def chart(cluster_tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Chart:
    """The chart quire."""
    return Chart(cluster_tools.helm, ROOT / "charts" / "quire", tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def crds_chart(cluster_tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Chart:
    """The chart quire-crds."""
    return Chart(cluster_tools.helm, ROOT / "charts" / "quire-crds", tmp_path_factory.mktemp("helm"))
