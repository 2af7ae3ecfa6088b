"""The operator process: waits for the Lease, then works until it is told to stop or loses it."""

import asyncio
import logging
import os
import random
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from quire_contract import names
from quire_contract.kube.access import KubeAccess, KubeAccessError
from quire_contract.kube.client import KubeClient
from quire_contract.kube.resources import ResourceKind
from quire_contract.telemetry import configure_logging, log_event
from quire_operator.config import ConfigError, OperatorConfig, parse_config, with_namespace
from quire_operator.handlers import quieten_kopf, run_kopf
from quire_operator.health import serve_health
from quire_operator.keda.endpoint import LeaderAddress
from quire_operator.keda.service import KedaSettings
from quire_operator.leader import LeaderElection, LeadershipLostError
from quire_operator.machine import Machine, Scope
from quire_operator.metrics import Metrics
from quire_operator.platform import VERSION, Platform

logger = logging.getLogger("quire_operator")

_USER_AGENT = f"quire-operator/{VERSION}"
_STOP_S = 2.0
_FAILED = 1


def main() -> None:
    """Parse, validate, build, run. Exits with 0 when told to stop, 1 when leadership is lost or something fails, 2 on bad settings."""
    try:
        config = parse_config(sys.argv[1:], identity=f"{socket.gethostname()}_{secrets.token_hex(4)}")
        access = _access(config)
    except (ConfigError, KubeAccessError) as error:
        sys.exit(f"quire-operator: {error}")
    configure_logging(level=config.log_level, as_json=config.log_json, process="operator")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    quieten_kopf()
    code = uvloop.run(_run(config, access))
    logging.shutdown()
    os._exit(code)  # nothing may hold up the exit of a process that must not act any more


def _access(config: OperatorConfig) -> KubeAccess:
    if config.kubeconfig is not None:
        return KubeAccess.from_kubeconfig(config.kubeconfig)
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    return KubeAccess.in_cluster(host=host, port=port) if host and port else KubeAccess.in_cluster()


async def _run(config: OperatorConfig, access: KubeAccess) -> int:
    platform, namespaces = with_namespace(config, access.namespace)
    metrics, rng, stop = Metrics(), random.Random(), asyncio.Event()  # noqa: S311 - it spreads waits
    observe = _counting(metrics)
    take_signals = _signal_taker(stop)
    take_signals()
    async with KubeClient(access, user_agent=_USER_AGENT, observe=observe) as lease_client:
        election = LeaderElection(
            lease_client, namespace=access.namespace, name=config.lease_name, identity=config.identity, rng=rng
        )
        async with KubeClient(
            access, user_agent=_USER_AGENT, observe=observe, before=_only_while(election.holds)
        ) as client:
            machine = Machine(
                client,
                platform=platform,
                scope=Scope(namespaces=namespaces),
                metrics=metrics,
                watch_documents=lambda listener: run_kopf(access, namespaces, listener, take_signals),
                rng=rng,
                keda=_keda(config, platform),
            )
            metrics.leader.set_function(lambda: float(election.holds()))
            ports = (config.health_port, config.metrics_port)
            # A standby is ready: it is there to take over.
            is_ready = _readiness(election, machine)
            async with serve_health(metrics, is_ready, host=platform.bind_host, ports=ports):
                return await _lead(election, machine, stop)


def _keda(config: OperatorConfig, platform: Platform) -> KedaSettings | None:
    if config.scaler_port is None:
        return None
    leader, pod, ip = None, os.environ.get(names.ENV_POD_NAME), os.environ.get(names.ENV_POD_IP)
    if config.scaler_service and pod and ip and platform.namespace:
        service, namespace = config.scaler_service, platform.namespace
        leader = LeaderAddress(namespace=namespace, service=service, pod=pod, ip=ip, port=config.scaler_port)
    return KedaSettings(host=platform.bind_host, port=config.scaler_port, tls=config.scaler_tls, leader=leader)


async def _lead(election: LeaderElection, machine: Machine, stop: asyncio.Event) -> int:
    """The exit code."""
    if not await _first_of(election.acquire(), stop.wait()):
        return 0
    try:
        await _first_of(machine.run(), election.keep(), stop.wait())
    except LeadershipLostError as error:
        log_event(logger, logging.ERROR, "leadership lost", reason=str(error))
        logging.shutdown()
        os._exit(_FAILED)  # not even a tidy end may last longer than the lease
    except Exception:
        logger.exception("the operator failed")
        await election.release()
        return _FAILED
    await election.release()
    return 0


async def _first_of(first: Coroutine[Any, Any, Any], *others: Coroutine[Any, Any, Any]) -> bool:
    """Run all until one ends, then stop the rest. Whether `first` ended; raises what the ended ones raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in (first, *others)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=_STOP_S)
    for task in done:
        task.result()
    return tasks[0] in done


def _readiness(election: LeaderElection, machine: Machine) -> Callable[[], bool]:
    return lambda: machine.working.is_set() or not election.holds()


def _only_while(holds: Callable[[], bool]) -> Callable[[str], None]:
    def check(method: str) -> None:
        if method != "GET" and not holds():
            raise LeadershipLostError("the lease has run out; nothing is written any more")

    return check


def _counting(metrics: Metrics) -> Callable[[str, ResourceKind | None, int], None]:
    def observe(method: str, kind: ResourceKind | None, status: int) -> None:
        metrics.api_requests.labels(method, kind.kind if kind else "", str(status)).inc()

    return observe


def _signal_taker(stop: asyncio.Event) -> Callable[[], None]:
    def take() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)

    return take


if __name__ == "__main__":
    main()
