"""Quire on the machine's cluster: its charts installed from images of `make images`, and what a test asks about it.

Must not know what a test expects.
"""

import copy
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import yaml

from .cache import cache_folder
from .machine import MachineCluster
from .tools import Command, CommandError, find_tools, helm_command, kubectl_command

REPOSITORY = Path(__file__).parents[2]
NAMESPACE, RELEASE, MODEL = "quire-system", "quire", "quire-demo"
# Of the images under test, and of the worker's image that is the same but for a label.
IMAGE_TAG = os.environ.get("QUIRE_E2E_TAG", "e2e")
NEXT_IMAGE = f"localhost/quire-worker:{IMAGE_TAG}-next"
POLL_S = 0.5
# The test cluster's server is older than what is supported, and drops what it does not know instead of refusing it.
OLD_SERVER_FLAGS = ("--server-side=false", "--disable-openapi-validation")
# What every namespace has, and what Kubernetes keeps beside other objects by itself.
OF_KUBERNETES = ("ConfigMap/kube-root-ca.crt", "ServiceAccount/default")
ACCOUNT_TOKEN = "kubernetes.io/service-account-token"
DERIVED_KINDS = ("Event", "Endpoints", "EndpointSlice", "PodMetrics")


def wait_until(condition: Callable[[], bool], timeout_s: float, what: Callable[[], str] | str) -> float:
    """Looks until `condition()` holds; the seconds that it took. Raises AssertionError after `timeout_s`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(POLL_S)
    return time.monotonic() - began


def values_of(tag: str) -> dict[str, Any]:
    """Values of a small release whose three images carry `tag`."""

    def small() -> dict[str, Any]:
        return {"image": {"tag": tag}, "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}}

    return {
        "allowUnsupportedKubernetes": True,
        "global": {"imageRegistry": "localhost"},
        "operator": small(),
        "router": small(),
        "worker": {"image": {"tag": tag}, "requests": {"cpu": "100m", "memory": "256Mi"}},
    }


class Installation:
    """One release in a namespace of its own, and one InferenceService in it. Releases in other namespaces are left alone."""

    def __init__(
        self,
        kubectl: Command,
        helm: Command,
        folder: Path,
        *,
        namespace: str = NAMESPACE,
        release: str = RELEASE,
        model: str = MODEL,
        values: dict[str, Any] | None = None,
    ) -> None:
        """`values` of the chart instead of values_of(IMAGE_TAG); `model` is the InferenceService that is asked about."""
        self.kubectl, self.helm, self._folder = kubectl, helm, folder
        self.namespace, self.release, self.model = namespace, release, model
        self._values = folder / "values.yaml"
        self._values.write_text(yaml.safe_dump(values or values_of(IMAGE_TAG)))

    def remove_rest(self) -> None:
        """Removes what an earlier run left in the release's namespace."""
        self.helm.run("uninstall", self.release, "--namespace", self.namespace, "--ignore-not-found", "--wait")
        self.kubectl("delete", "namespace", self.namespace, "--ignore-not-found", "--timeout=120s")

    def about(self, model: str) -> Self:
        """The same release, asked about another InferenceService."""
        other = copy.copy(self)
        other.model = model
        return other

    def install_definitions(self) -> None:
        """The chart quire-crds."""
        self.helm("upgrade", "--install", "quire-crds", REPOSITORY / "charts" / "quire-crds", *OLD_SERVER_FLAGS)
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/inferenceservices.quire.dev")

    def install(self, chart: Path, *settings: str) -> None:
        """Installs or upgrades the release from a chart; returns when operator and routers are the new ones.

        `settings` such as "models.cache.kind=EmptyDir" come on top of the release's values.
        """
        flags = ["--namespace", self.namespace, "--create-namespace", "--values", str(self._values)]
        flags += [part for setting in settings for part in ("--set", setting)]
        self.helm("upgrade", "--install", self.release, chart, *flags, timeout_s=300.0)
        for component in ("operator", "router"):
            deployment = f"deployment/{self.release}-{component}"
            try:
                self.namespaced("rollout", "status", deployment, "--timeout=120s", timeout_s=150.0)
            except CommandError as error:
                raise AssertionError(f"{error}\n{self.diagnosis()}") from None

    def namespaced(self, *arguments: str | Path, timeout_s: float = 120.0) -> str:
        """kubectl in the release's namespace."""
        return self.kubectl("--namespace", self.namespace, *arguments, timeout_s=timeout_s)

    def apply(self, document: dict[str, Any]) -> None:
        """Makes or changes an object in the release's namespace."""
        self.kubectl("--namespace", self.namespace, "apply", "-f", "-", stdin=json.dumps(document))

    def patch(self, resource: str, change: dict[str, Any]) -> None:
        """Merges `change` into KIND/NAME of the release's namespace."""
        self.namespaced("patch", resource, "--type=merge", "-p", json.dumps(change))

    def get(self, *arguments: str) -> Any:
        """`kubectl get` in the release's namespace, parsed."""
        return self.kubectl.json("--namespace", self.namespace, "get", *arguments)

    def router_url(self) -> str:
        """http://CLUSTER-ADDRESS:PORT of the routers' Service, which this machine reaches as pods do."""
        spec = self.get("service", f"{self.release}-router")["spec"]
        return f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def ask(self, url: str) -> str | None:
        """The model's answer to one question; None while there is none."""
        body = {"model": self.model, "messages": [{"role": "user", "content": "What is 17 + 25?"}], "max_tokens": 16}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        except (OSError, urllib.error.HTTPError):
            return None

    def workers(self) -> dict[str, dict[str, Any]]:
        """Name -> pod of every worker that is not terminating."""
        pods = self.get("pods", "-l", f"quire.dev/service={self.model}")["items"]
        return {pod["metadata"]["name"]: pod for pod in pods if "deletionTimestamp" not in pod["metadata"]}

    def num_worker_pods(self) -> int:
        """How many worker pods there are, terminating ones with them."""
        return len(self.get("pods", "-l", f"quire.dev/service={self.model}")["items"])

    def ready_workers(self) -> dict[str, dict[str, Any]]:
        """Those of workers() that are Ready."""
        return {name: pod for name, pod in self.workers().items() if _is_ready(pod)}

    def worker_uids(self) -> set[str]:
        """Identities of the workers' pods."""
        return {pod["metadata"]["uid"] for pod in self.workers().values()}

    def service_status(self) -> dict[str, Any]:
        """Status of the InferenceService."""
        status: dict[str, Any] = self.get("inferenceservices.quire.dev", self.model).get("status") or {}
        return status

    def condition(self, kind: str) -> str:
        """Status of one condition of the InferenceService: True, False, Unknown, or nothing."""
        return self.verdict(kind).get("status", "")

    def verdict(self, kind: str) -> dict[str, str]:
        """One whole condition of the InferenceService: status, reason, message and times; empty while there is none."""
        conditions = self.service_status().get("conditions") or []
        return next((found for found in conditions if found["type"] == kind), {})

    def cluster_objects(self) -> set[str]:
        """KIND/NAME of every object without a namespace that a release could have made."""
        kinds = self.kubectl("api-resources", "--namespaced=false", "--verbs=list", "-o", "name").split()
        return {_name(item) for item in self.kubectl.json("get", ",".join(kinds))["items"]}

    def left(self) -> set[str]:
        """KIND/NAME of every object of the namespace that is neither Kubernetes' own nor owned by another object that is there."""
        kinds = self.kubectl("api-resources", "--namespaced=true", "--verbs=list", "-o", "name").split()
        items = self.get(",".join(kinds))["items"]
        present = {item["metadata"]["uid"] for item in items}
        return {
            _name(item)
            for item in items
            if item["kind"] not in DERIVED_KINDS
            and _name(item) not in OF_KUBERNETES
            and item.get("type") != ACCOUNT_TOKEN
            and not any(owner["uid"] in present for owner in item["metadata"].get("ownerReferences") or [])
        }

    def diagnosis(self) -> str:
        """What a person would look at first when something is wrong."""
        told = []
        for arguments in (
            ("get", "pods,infsvc,deployments,configmaps,leases", "-o", "wide"),
            (
                "get",
                "infsvc",
                "-o",
                "jsonpath={range .items[*].status.conditions[*]}{.type}={.status} {.reason}: {.message}\n{end}",
            ),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", "-l", "app.kubernetes.io/component=operator", "--tail=40", "--prefix"),
            ("logs", "-l", "app.kubernetes.io/component=router", "--tail=20", "--prefix"),
            ("logs", "-l", f"quire.dev/service={self.model}", "--tail=20", "--prefix"),
        ):
            done = self.kubectl.run("--namespace", self.namespace, *arguments)
            told.append(f"$ kubectl {' '.join(arguments)}\n{done.stdout[-6000:]}{done.stderr[-1000:]}")
        return "\n".join(told)


def machine_installation(folder: Path, **options: Any) -> Installation:
    """Installation(**options) on the machine's cluster, from whose namespace an earlier run's rest is removed."""
    cluster = MachineCluster(cache_folder() / "cluster")
    assert cluster.is_up(), "the cluster does not run: make cluster-up"
    tools = find_tools()
    kubectl, helm = kubectl_command(tools, cluster.kubeconfig), helm_command(tools, cluster.kubeconfig, folder)
    installation = Installation(kubectl, helm, folder, **options)
    installation.remove_rest()
    return installation


def fixture_chart(folder: Path) -> Path:
    """A chart that renders differently from charts/quire as another release of it would; it stands for that release."""
    chart = folder / "quire"
    shutil.copytree(REPOSITORY / "charts" / "quire", chart)
    values = yaml.safe_load((chart / "values.yaml").read_text())
    for component in ("operator", "router"):
        values[component]["podAnnotations"] = {"quire.dev/fixture": "another-release"}
        values[component]["logLevel"] = "debug"
    # What workers are made from changes, too; those that run keep what they were made from.
    values["models"]["fetchResources"] = {"requests": {"cpu": "150m", "memory": "96Mi"}}
    values["worker"]["spot"] = {"labelKey": "quire.dev/fixture", "labelValue": "spot"}
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": "0.0.9"}))
    (chart / "templates" / "fixture.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: quire-fixture}\ndata: {only: in-the-other-release}\n"
    )
    return chart


def _name(item: dict[str, Any]) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(found["type"] == "Ready" and found["status"] == "True" for found in conditions)
