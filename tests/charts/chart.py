"""A chart of the repository as `helm` renders it, without a cluster."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Manifest = dict[str, Any]
KUBE_VERSION = "1.31"
EXTRA_APIS = ("monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1")


class ChartRefusedError(Exception):
    """Helm did not render; the message is what it said."""


class Chart:
    """`render` and its like take values as `values.yaml` has them."""

    def __init__(self, helm: Path, folder: Path, home: Path) -> None:
        self.folder = folder
        self._helm = helm
        # No kubeconfig and nothing of the user's: what is rendered depends on the chart alone.
        self._environment = {**os.environ, "KUBECONFIG": os.devnull, "HELM_CACHE_HOME": str(home)}
        self._environment |= {"HELM_CONFIG_HOME": str(home), "HELM_DATA_HOME": str(home)}

    @property
    def values(self) -> dict[str, Any]:
        """The chart's values.yaml."""
        loaded = yaml.safe_load((self.folder / "values.yaml").read_text())
        assert isinstance(loaded, dict)
        return loaded

    def render(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        name: str = "quire",
        namespace: str = "llm",
        kube_version: str = KUBE_VERSION,
        apis: Sequence[str] = EXTRA_APIS,
    ) -> list[Manifest]:
        """Every object, the hooks' too. Raises ChartRefusedError."""
        text = self.render_text(values, name=name, namespace=namespace, kube_version=kube_version, apis=apis)
        return [document for document in yaml.safe_load_all(text) if document]

    def render_text(
        self,
        values: Mapping[str, Any] | None = None,
        *,
        name: str = "quire",
        namespace: str = "llm",
        kube_version: str = KUBE_VERSION,
        apis: Sequence[str] = EXTRA_APIS,
    ) -> str:
        """The same as the text that helm prints. Raises ChartRefusedError."""
        offered = [argument for api in apis for argument in ("--api-versions", api)]
        command = ["template", name, str(self.folder), "-n", namespace, "--kube-version", kube_version, *offered]
        return self._run([*command, "-f", "-"], json.dumps(values or {}))

    def notes(self, values: Mapping[str, Any] | None = None) -> str:
        """What `helm install` prints. Raises ChartRefusedError."""
        command = ["install", "quire", str(self.folder), "-n", "llm", "--dry-run=client", "-f", "-"]
        return self._run(command, json.dumps(values or {})).split("\nNOTES:\n", 1)[1]

    def lint(self) -> str:
        """What `helm lint --strict` says. Raises ChartRefusedError."""
        return self._run(["lint", "--strict", "--kube-version", KUBE_VERSION, str(self.folder)], "")

    def _run(self, arguments: Sequence[str], stdin: str) -> str:
        done = subprocess.run(
            [self._helm, *arguments], input=stdin, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ChartRefusedError(done.stderr + done.stdout)
        return done.stdout


def of_kind(objects: Sequence[Manifest], kind: str) -> dict[str, Manifest]:
    """The objects of one kind by name."""
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == kind}


def one(objects: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The object of that kind and name."""
    return of_kind(objects, kind)[name]


def pod_templates(objects: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod or pod template with its owner's kind and name."""
    for item in objects:
        label = f"{item['kind']}/{item['metadata']['name']}"
        if item["kind"] == "Pod":
            yield label, item
        elif item["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "Job"}:
            yield label, item["spec"]["template"]
