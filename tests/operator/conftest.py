"""Documents that the operator's tests start from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Document = dict[str, Any]


@pytest.fixture
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[2]


@pytest.fixture
def document() -> Callable[[str], Document]:
    """Makes an InferenceService document whose spec is the given YAML; `model.uri` is there unless the YAML has a model."""

    def make(spec: str = "", name: str = "llama") -> Document:
        parsed = yaml.safe_load(spec) or {}
        return {
            "apiVersion": "quire.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": {"name": name},
            "spec": {"model": {"uri": "pvc://models/llama"}, **parsed},
        }

    return make
