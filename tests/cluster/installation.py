"""Quire on the machine's cluster: its charts installed from images of `make images`, and what a test asks about it.

Must not know what a test expects.
"""

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from .tools import Command, CommandError

REPOSITORY = Path(__file__).parents[2]
NAMESPACE, RELEASE, MODEL = "quire-system", "quire", "quire-demo"
IMAGE_TAG, NEXT_IMAGE = "e2e", "localhost/quire-worker:e2e-next"
POLL_S = 1.0
# The test cluster's server is older than what is supported, and drops what it does not know instead of refusing it.
OLD_SERVER_FLAGS = ("--server-side=false", "--disable-openapi-validation")
VALUES: dict[str, Any] = {
    "allowUnsupportedKubernetes": True,
    "global": {"imageRegistry": "localhost"},
    "operator": {"image": {"tag": IMAGE_TAG}, "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}},
    "router": {"image": {"tag": IMAGE_TAG}, "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}},
    "worker": {"image": {"tag": IMAGE_TAG}, "requests": {"cpu": "100m", "memory": "256Mi"}},
}
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


class Installation:
    """The release on one cluster."""

    def __init__(self, kubectl: Command, helm: Command, folder: Path) -> None:
        self.kubectl, self.helm, self._folder = kubectl, helm, folder
        self._values = folder / "values.yaml"
        self._values.write_text(yaml.safe_dump(VALUES))

    def remove_rest(self) -> None:
        """Removes what an earlier run left."""
        self.helm.run("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait")
        self.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s")
        self.kubectl.run("delete", "infsvc,modelroutes,tenants", "--all", "--all-namespaces", "--timeout=60s")

    def install_definitions(self) -> None:
        """The chart quire-crds."""
        self.helm("upgrade", "--install", "quire-crds", REPOSITORY / "charts" / "quire-crds", *OLD_SERVER_FLAGS)
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/inferenceservices.quire.dev")

    def install(self, chart: Path) -> None:
        """Installs or upgrades the release from a chart; returns when operator and routers are the new ones."""
        flags = ("--namespace", NAMESPACE, "--create-namespace", "--values", str(self._values))
        self.helm("upgrade", "--install", RELEASE, chart, *flags, timeout_s=300.0)
        for component in ("operator", "router"):
            deployment = f"deployment/{RELEASE}-{component}"
            try:
                self.namespaced("rollout", "status", deployment, "--timeout=120s", timeout_s=150.0)
            except CommandError as error:
                raise AssertionError(f"{error}\n{self.diagnosis()}") from None

    def namespaced(self, *arguments: str | Path, timeout_s: float = 120.0) -> str:
        """kubectl in the release's namespace."""
        return self.kubectl("--namespace", NAMESPACE, *arguments, timeout_s=timeout_s)

    def get(self, *arguments: str) -> Any:
        """`kubectl get` in the release's namespace, parsed."""
        return self.kubectl.json("--namespace", NAMESPACE, "get", *arguments)

    def router_url(self) -> str:
        """http://CLUSTER-ADDRESS:PORT of the routers' Service, which this machine reaches as pods do."""
        spec = self.get("service", f"{RELEASE}-router")["spec"]
        return f"http://{spec['clusterIP']}:{spec['ports'][0]['port']}"

    def ask(self, url: str) -> str | None:
        """The model's answer to one question; None while there is none."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "What is 17 + 25?"}], "max_tokens": 16}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return str(json.load(response)["choices"][0]["message"]["content"])
        except (OSError, urllib.error.HTTPError):
            return None

    def workers(self) -> dict[str, dict[str, Any]]:
        """Name -> pod of every worker that is not terminating."""
        pods = self.get("pods", "-l", f"quire.dev/service={MODEL}")["items"]
        return {pod["metadata"]["name"]: pod for pod in pods if "deletionTimestamp" not in pod["metadata"]}

    def num_worker_pods(self) -> int:
        """How many worker pods there are, terminating ones with them."""
        return len(self.get("pods", "-l", f"quire.dev/service={MODEL}")["items"])

    def ready_workers(self) -> dict[str, dict[str, Any]]:
        """Those of workers() that are Ready."""
        return {name: pod for name, pod in self.workers().items() if _is_ready(pod)}

    def worker_uids(self) -> set[str]:
        """Identities of the workers' pods."""
        return {pod["metadata"]["uid"] for pod in self.workers().values()}

    def service_status(self) -> dict[str, Any]:
        """Status of the demo's InferenceService."""
        status: dict[str, Any] = self.get("inferenceservices.quire.dev", MODEL).get("status") or {}
        return status

    def condition(self, kind: str) -> str:
        """Status of one condition of the demo's InferenceService: True, False, Unknown, or nothing."""
        conditions = self.service_status().get("conditions") or []
        return next((str(found["status"]) for found in conditions if found["type"] == kind), "")

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
            ("logs", "-l", f"quire.dev/service={MODEL}", "--tail=20", "--prefix"),
        ):
            done = self.kubectl.run("--namespace", NAMESPACE, *arguments)
            told.append(f"$ kubectl {' '.join(arguments)}\n{done.stdout[-6000:]}{done.stderr[-1000:]}")
        return "\n".join(told)


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
