"""How a model comes into a pod: the init container, the cache, credentials that only it sees; and who may talk to the pods."""

from collections.abc import Callable
from typing import Any

import pytest

from quire_operator.api.validation import InvalidResourceError, parse_service
from quire_operator.desired_state import desired_state
from quire_operator.manifests.fetch import model_key, ports_reached
from quire_operator.platform import ModelCache, Platform
from quire_operator.revisions import current_revision

Make = Callable[..., dict[str, Any]]
Manifest = dict[str, Any]

HUB = "model: {uri: 'hf://a/b', revision: v1, secretRef: {name: hub}}"


def manifests_of(document: dict[str, Any], platform: Platform, namespace: str | None = None) -> dict[str, Manifest]:
    """By kind."""
    document["metadata"]["namespace"] = namespace
    service = parse_service(document)
    return {one["kind"]: one for one in desired_state(service, [current_revision(service, platform)], platform)}


def pod_of(document: dict[str, Any], platform: Platform) -> Manifest:
    pod: Manifest = manifests_of(document, platform)["Deployment"]["spec"]["template"]["spec"]
    return pod


def env_names(container: Manifest) -> set[str]:
    return {variable["name"] for variable in container["env"]}


@pytest.mark.parametrize("uri", ["pvc://models/llama", "file:models/demo"])
def test_a_model_that_is_at_hand_is_not_fetched(document: Make, uri: str) -> None:
    found = manifests_of(
        document(f"model: {{uri: '{uri}'}}"), Platform(model_cache=ModelCache(kind="PersistentVolumeClaim"))
    )

    assert "initContainers" not in found["Deployment"]["spec"]["template"]["spec"]
    assert "PersistentVolumeClaim" not in found


def test_the_worker_reads_the_folder_that_the_init_container_fills(document: Make) -> None:
    pod = pod_of(document(HUB), Platform())
    (fetch,), (worker,) = pod["initContainers"], pod["containers"]

    dest = fetch["args"][fetch["args"].index("--dest") + 1]

    assert {"name": "MODEL_DIR", "value": dest} in worker["env"]
    assert dest.endswith(f"/{model_key('hf://a/b', 'v1')}")
    (written,) = (mount for mount in fetch["volumeMounts"] if mount["name"] == "model")
    (read,) = (mount for mount in worker["volumeMounts"] if mount["name"] == "model")
    assert dest.startswith(written["mountPath"] + "/")
    assert written["mountPath"] == read["mountPath"]
    assert "readOnly" not in written
    assert read["readOnly"] is True
    assert fetch["image"] == worker["image"]


def test_a_models_folder_is_named_by_source_and_revision() -> None:
    keys = {model_key("hf://a/b", None), model_key("hf://a/b", "v1"), model_key("hf://a/c", "v1")}

    assert len(keys) == 3
    assert all(len(key) == 16 for key in keys)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://a/b", {"HF_TOKEN"}),
        ("s3://bucket/x", {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"}),
        ("https://host/x.tar", {"TOKEN"}),
    ],
)
def test_credentials_of_the_source_reach_the_fetcher_only_and_only_its_own(
    document: Make, uri: str, expected: set[str]
) -> None:
    pod = pod_of(document(f"model: {{uri: '{uri}', secretRef: {{name: s}}}}"), Platform())
    (fetch,), (worker,) = pod["initContainers"], pod["containers"]

    secret = [variable for variable in fetch["env"] if "secretKeyRef" in variable.get("valueFrom", {})]

    assert {variable["name"] for variable in secret} == expected
    for variable in secret:
        assert variable["valueFrom"]["secretKeyRef"] == {"name": "s", "key": variable["name"], "optional": True}
    assert not env_names(worker) & expected
    assert "secretKeyRef" not in str(worker)


def test_a_uri_with_dollars_reaches_the_fetcher_as_it_is(document: Make) -> None:
    pod = pod_of(document("model: {uri: 'https://host/$(HOME)/x.tar'}"), Platform())

    args = pod["initContainers"][0]["args"]

    assert args[args.index("--uri") + 1] == "https://host/$$(HOME)/x.tar"


def test_an_empty_dir_has_a_limit_that_the_fetcher_knows(document: Make) -> None:
    pod = pod_of(document(HUB), Platform(model_cache=ModelCache(size="1Gi")))

    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "model")
    args = pod["initContainers"][0]["args"]

    assert volume["emptyDir"] == {"sizeLimit": "1Gi"}
    assert args[args.index("--max-bytes") + 1] == str(2**30)


@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "HostPath"])
def test_a_shared_cache_with_a_bound_is_told_to_the_fetcher(document: Make, kind: Any) -> None:
    bounded = pod_of(document(HUB), Platform(model_cache=ModelCache(kind=kind, host_path="/m", max_size="1500M")))
    free = pod_of(document(HUB), Platform(model_cache=ModelCache(kind=kind, host_path="/m")))

    args = bounded["initContainers"][0]["args"]
    assert args[args.index("--cache-bytes") + 1] == "1500000000"
    assert "--cache-bytes" not in free["initContainers"][0]["args"]


def test_a_claim_is_made_once_for_a_namespace_and_owned_by_nobody(document: Make) -> None:
    stored = document(HUB)
    stored["metadata"]["uid"] = "u-1"
    cache = ModelCache(kind="PersistentVolumeClaim", claim="models", size="2Ti", access_mode="ReadWriteOnce")

    found = manifests_of(stored, Platform(model_cache=cache), namespace="team-a")

    claim = found["PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == "models"
    assert claim["metadata"]["namespace"] == "team-a"
    assert "ownerReferences" not in claim["metadata"]
    assert "quire.dev/service" not in claim["metadata"]["labels"]
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Ti"}}}
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models"}} in pod["volumes"]


def test_what_one_namespace_fetched_with_credentials_another_does_not_find_on_the_node(document: Make) -> None:
    def folder(namespace: str, spec: str, kind: Any) -> str:
        platform = Platform(model_cache=ModelCache(kind=kind, host_path="/data"))
        pod = manifests_of(document(spec), platform, namespace)["Deployment"]["spec"]["template"]["spec"]
        (value,) = (variable["value"] for variable in pod["containers"][0]["env"] if variable["name"] == "MODEL_DIR")
        return str(value)

    public = "model: {uri: 'hf://a/b', revision: v1}"

    assert folder("a", HUB, "HostPath") != folder("b", HUB, "HostPath")
    assert folder("a", HUB, "HostPath") != folder("a", public, "HostPath")
    assert folder("a", public, "HostPath") == folder("b", public, "HostPath")
    assert folder("a", HUB, "PersistentVolumeClaim") == folder("a", public, "PersistentVolumeClaim")


def test_a_host_path_is_never_made_as_root(document: Make) -> None:
    pod = pod_of(document(HUB), Platform(model_cache=ModelCache(kind="HostPath", host_path="/data/quire")))

    assert {"name": "model", "hostPath": {"path": "/data/quire", "type": "Directory"}} in pod["volumes"]


def test_proxy_and_private_authorities_are_the_fetchers(document: Make) -> None:
    pod = pod_of(document(HUB), Platform(proxy_env={"HTTPS_PROXY": "http://p:3128"}, ca_config_map="ca"))
    (fetch,), (worker,) = pod["initContainers"], pod["containers"]

    assert {"name": "HTTPS_PROXY", "value": "http://p:3128"} in fetch["env"]
    assert fetch["args"][fetch["args"].index("--ca-file") + 1] == "/etc/quire/ca/ca.crt"
    assert {"name": "ca", "configMap": {"name": "ca"}} in pod["volumes"]
    assert "HTTPS_PROXY" not in env_names(worker)


@pytest.mark.parametrize("uri", ["pvc://models/x", "file:x"])
def test_credentials_for_what_is_not_fetched_are_refused(document: Make, uri: str) -> None:
    broken = document(f"model: {{uri: '{uri}', secretRef: {{name: x}}}}")

    with pytest.raises(InvalidResourceError, match=r"spec\.model\.secretRef: only an hf://, s3:// or http"):
        parse_service(broken)


def test_another_secret_makes_another_revision(document: Make) -> None:
    one, two = (parse_service(document(f"model: {{uri: 'hf://a/b', secretRef: {{name: {name}}}}}")) for name in "xy")

    assert current_revision(one, Platform()).name != current_revision(two, Platform()).name


def egress_ports(policy: Manifest) -> list[list[int]]:
    """Of rules that are about ports."""
    return [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"] if "ports" in rule]


def test_the_policy_of_a_fetching_service_opens_443_and_the_ports_of_endpoint_and_proxy(document: Make) -> None:
    platform = Platform(
        s3_endpoint="http://minio.storage:9000", proxy_env={"HTTPS_PROXY": "http://p:3128"}, model_cidrs=("10.0.0.0/8",)
    )

    policy = manifests_of(document("model: {uri: 's3://bucket/x'}"), platform)["NetworkPolicy"]

    assert egress_ports(policy) == [[53, 53], [443, 3128, 9000]]
    assert policy["spec"]["egress"][-1]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def test_the_policy_of_a_service_that_fetches_nothing_lets_nothing_out(document: Make) -> None:
    policy = manifests_of(document(), Platform())["NetworkPolicy"]

    assert egress_ports(policy) == [[53, 53]]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_policy_follows_the_templates_that_still_have_pods(document: Make) -> None:
    platform = Platform()
    before, after = parse_service(document("model: {uri: 'http://host:8080/x.tar'}")), parse_service(document())
    revisions = [current_revision(before, platform), current_revision(after, platform)]

    found = {one["kind"]: one for one in desired_state(after, revisions, platform)}

    assert egress_ports(found["NetworkPolicy"]) == [[53, 53], [443, 8080]]


def test_the_policy_lets_in_routers_operator_siblings_and_scrapers(document: Make) -> None:
    scrapers = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    platform = Platform(release="prod", namespace="quire", metrics_from=(scrapers,))

    policy = manifests_of(document(HUB), platform, namespace="team-a")["NetworkPolicy"]

    release = {"matchLabels": {"kubernetes.io/metadata.name": "quire"}}
    routers, operator, siblings, metrics = policy["spec"]["ingress"]
    assert routers["from"] == [
        {
            "podSelector": {"matchLabels": {"app.kubernetes.io/instance": "prod", "quire.dev/role": "router"}},
            "namespaceSelector": release,
        }
    ]
    assert [port["port"] for port in routers["ports"]] == ["http", "events", "replay"]
    assert operator["from"][0]["podSelector"]["matchLabels"]["quire.dev/role"] == "operator"
    assert [port["port"] for port in operator["ports"]] == ["http", 8001]
    assert siblings == {"from": [{"podSelector": policy["spec"]["podSelector"]}]}
    assert metrics == {"from": [scrapers], "ports": [{"port": "http", "protocol": "TCP"}]}


def test_in_the_releases_own_namespace_no_namespace_is_selected(document: Make) -> None:
    policy = manifests_of(document(), Platform(namespace="quire"), namespace="quire")["NetworkPolicy"]

    assert all("namespaceSelector" not in peer for rule in policy["spec"]["ingress"] for peer in rule["from"])


def test_a_release_may_go_without_policies(document: Make) -> None:
    assert "NetworkPolicy" not in manifests_of(document(), Platform(network_policies=False))


def test_ports_are_read_from_a_stored_template() -> None:
    fetch = {"name": "fetch", "args": ["--uri", "http://h/x", "--dest", "/d"], "env": [{"name": "A", "valueFrom": {}}]}

    assert ports_reached({"spec": {"initContainers": [fetch]}}) == [80, 443]
