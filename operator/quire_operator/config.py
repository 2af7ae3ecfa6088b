"""The operator's settings: flags, and the release's platform from a YAML file. Unknown keys are errors.

This module reads that one file; it must not know the environment or the cluster.
"""

import argparse
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml
from pydantic.alias_generators import to_camel

from quire_operator.keda.server import ScalerTls
from quire_operator.platform import Platform

ALL_NAMESPACES = "*"


class ConfigError(ValueError):
    """Flags or file cannot be used. The message names the field and the fix."""


@dataclass(frozen=True, kw_only=True)
class OperatorConfig:
    """One operator process."""

    platform: Platform
    """The release, as the chart wrote it."""
    watch_namespaces: tuple[str, ...]
    """Where services are looked for; ("*",): everywhere; empty: in the operator's own namespace."""
    lease_name: str
    """The Lease in the operator's namespace whose holder acts."""
    identity: str
    """This process among the candidates."""
    health_port: int
    """Serves /health and /ready."""
    metrics_port: int
    """Serves /metrics, and the others too."""
    kubeconfig: Path | None
    """How to reach the API server from outside a cluster; None: by the pod's service account."""
    log_level: str
    """debug, info, warning or error."""
    log_json: bool
    """JSON lines instead of key=value."""
    scaler_port: int | None = None
    """Where the leader serves KEDA's external scaler; None: it does not."""
    scaler_tls: ScalerTls | None = None
    """The scaler's certificates; None: plain."""
    scaler_service: str | None = None
    """The Service without selector that is led to the leader's scaler; None: there is none."""


def parse_config(arguments: Sequence[str], *, identity: str) -> OperatorConfig:
    """Settings from the command line; `identity` unless a flag gives one. ConfigError or SystemExit, as argparse has it."""
    flags = _parser().parse_args(arguments)
    namespaces = tuple(dict.fromkeys(flags.watch_namespace))
    if ALL_NAMESPACES in namespaces and len(namespaces) > 1:
        raise ConfigError("--watch-namespace: '*' stands for all namespaces; name no others beside it")
    return OperatorConfig(
        platform=Platform() if flags.platform is None else read_platform(flags.platform),
        watch_namespaces=namespaces,
        lease_name=flags.lease_name,
        identity=flags.identity or identity,
        health_port=flags.health_port,
        metrics_port=flags.metrics_port,
        kubeconfig=flags.kubeconfig,
        log_level=flags.log_level,
        log_json=flags.log_json,
        scaler_port=flags.scaler_port,
        scaler_tls=_scaler_tls(flags),
        scaler_service=flags.scaler_service,
    )


def _scaler_tls(flags: argparse.Namespace) -> ScalerTls | None:
    cert, key, client_ca = flags.scaler_tls_cert, flags.scaler_tls_key, flags.scaler_tls_client_ca
    if (cert is None) != (key is None):
        raise ConfigError("--scaler-tls-cert and --scaler-tls-key belong together; give both, or neither")
    if cert is None:
        if client_ca is not None:
            raise ConfigError("--scaler-tls-client-ca needs --scaler-tls-cert and --scaler-tls-key")
        return None
    return ScalerTls(cert=cert, key=key, client_ca=client_ca)


def with_namespace(config: OperatorConfig, own: str) -> tuple[Platform, tuple[str, ...]]:
    """The platform, with its namespace, and the namespaces to watch (empty: all), where `own` is the process's."""
    platform = config.platform if config.platform.namespace else replace(config.platform, namespace=own)
    if ALL_NAMESPACES in config.watch_namespaces:
        return platform, ()
    return platform, config.watch_namespaces or (own,)


def read_platform(path: Path) -> Platform:
    """The platform in a YAML file whose keys are the camelCase names of Platform's fields. ConfigError names the field."""
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from None
    try:
        plain = _snake_case(document or {}, Platform, "")
        return msgspec.convert(plain, Platform)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _snake_case(value: Any, kind: type[Any], path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path or 'the file'}: must be a mapping")
    hints = get_type_hints(kind)
    known = {to_camel(field.name): field.name for field in fields(kind)}
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key not in known:
            raise ConfigError(f"{path}{key}: unknown key; known here: {', '.join(sorted(known))}")
        inner = _dataclass_in(hints[known[key]])
        found[known[key]] = _snake_case(item, inner, f"{path}{key}.") if inner and item is not None else item
    return found


def _dataclass_in(hint: Any) -> type[Any] | None:
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((choice for choice in choices if isinstance(choice, type) and is_dataclass(choice)), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="quire-operator", description="Turns InferenceServices into pods and tells routers of them."
    )
    parser.add_argument("--platform", type=Path, metavar="FILE", help="YAML with the release's images and defaults")
    parser.add_argument(
        "--watch-namespace",
        action="append",
        default=[],
        metavar="NS",
        help="where services are looked for; may be repeated; '*' for all (default: the operator's own namespace)",
    )
    parser.add_argument("--lease-name", default="quire-operator", help="whose holder acts (default: %(default)s)")
    parser.add_argument("--identity", help="this process among the candidates (default: host name and a random part)")
    parser.add_argument("--health-port", type=int, default=8081, help="(default: %(default)s)")
    parser.add_argument("--metrics-port", type=int, default=9090, help="(default: %(default)s)")
    parser.add_argument(
        "--kubeconfig", type=Path, metavar="FILE", help="outside a cluster (default: the pod's account)"
    )
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--log-json", action="store_true", help="JSON lines instead of key=value")
    scaler = parser.add_argument_group("KEDA's external scaler, which the leader serves")
    scaler.add_argument("--scaler-port", type=int, metavar="PORT", help="where it listens (default: it is not served)")
    scaler.add_argument(
        "--scaler-service",
        metavar="NAME",
        help="Service without selector in the operator's namespace that is led to the leader "
        "(needs POD_NAME and POD_IP in the environment)",
    )
    scaler.add_argument(
        "--scaler-tls-cert", type=Path, metavar="FILE", help="certificate chain in PEM (default: no TLS)"
    )
    scaler.add_argument("--scaler-tls-key", type=Path, metavar="FILE", help="its private key")
    scaler.add_argument(
        "--scaler-tls-client-ca",
        type=Path,
        metavar="FILE",
        help="who signs KEDA's certificate (default: none is asked for)",
    )
    return parser
