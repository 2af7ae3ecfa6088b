"""The operator's flags and its platform file."""

from pathlib import Path

import pytest

from quire_operator.config import ConfigError, parse_config, read_platform, with_namespace
from quire_operator.platform import KedaScaler


def write(folder: Path, text: str) -> Path:
    path = folder / "platform.yaml"
    path.write_text(text)
    return path


def test_a_platform_file_has_the_fields_names_in_camel_case(tmp_path: Path) -> None:
    text = (
        "workerImage: x/y:1\nmodelSources: [hf, pvc]\nmodelCache: {kind: PersistentVolumeClaim, size: 5Gi}\n"
        "spot: {labelKey: a, labelValue: b}\n"
    )

    platform = read_platform(write(tmp_path, text))

    assert platform.worker_image == "x/y:1"
    assert platform.model_sources == frozenset({"hf", "pvc"})
    assert (platform.model_cache.kind, platform.model_cache.size, platform.model_cache.claim) == (
        "PersistentVolumeClaim",
        "5Gi",
        "quire-models",
    )
    assert platform.spot.label_key == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workerImge: x", "workerImge: unknown key"),
        ("modelCache: {sise: 1Gi}", "modelCache.sise: unknown key"),
        ("modelCache: {kind: Tape}", "Tape"),
        ("routerReplicas: many", "routerReplicas|router_replicas"),
        ("- a", "must be a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_what_is_wrong_in_it_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_platform(write(tmp_path, text))


def test_namespaces_are_the_own_one_those_given_or_all() -> None:
    def watched(*flags: str) -> tuple[str, ...]:
        return with_namespace(parse_config(flags, identity="me"), "own")[1]

    assert watched() == ("own",)
    assert watched("--watch-namespace", "a", "--watch-namespace", "b", "--watch-namespace", "a") == ("a", "b")
    assert watched("--watch-namespace", "*") == ()
    with pytest.raises(ConfigError, match="stands for all"):
        watched("--watch-namespace", "*", "--watch-namespace", "a")


def test_the_scaler_is_served_where_flags_say_so_and_with_both_files(tmp_path: Path) -> None:
    cert, key, ca = (str(tmp_path / name) for name in ("tls.crt", "tls.key", "ca.crt"))
    tls = ["--scaler-tls-cert", cert, "--scaler-tls-key", key, "--scaler-tls-client-ca", ca]

    config = parse_config(["--scaler-port", "9091", "--scaler-service", "quire-scaler", *tls], identity="a")

    assert (config.scaler_port, config.scaler_service) == (9091, "quire-scaler")
    assert config.scaler_tls is not None
    assert (config.scaler_tls.cert, config.scaler_tls.client_ca) == (Path(cert), Path(ca))
    assert parse_config([], identity="a").scaler_port is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scaler-tls-cert", "a"], "belong together"),
        (["--scaler-tls-client-ca", "a"], "needs --scaler-tls-cert"),
    ],
)
def test_half_of_the_scalers_certificates_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(flags, identity="a")


def test_a_platform_says_how_keda_reaches_the_scaler(tmp_path: Path) -> None:
    text = "keda: {address: 'quire-scaler.llm.svc:9090', tls: true, authentication: quire-scaler}\n"

    platform = read_platform(write(tmp_path, text))

    assert platform.keda == KedaScaler(address="quire-scaler.llm.svc:9090", tls=True, authentication="quire-scaler")
    with pytest.raises(ConfigError, match=r"keda\.adress: unknown key"):
        read_platform(write(tmp_path, "keda: {adress: x}"))
