"""The way from the command line to the API server: which kubeconfig, one client for one command, errors in words.

This module must not know what a command asks for.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.host import Host
from quire_contract.kube.access import KubeAccess, KubeAccessError
from quire_contract.kube.client import KubeClient, KubeError
from quire_operator.platform import VERSION

Result = TypeVar("Result")

_FIXES = {
    401: "the credentials in the kubeconfig are not valid (any more); sign in again",
    403: "ask for the permission, or use a kubeconfig that has it",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a command works."""

    kubeconfig: Path | None
    """The file that --kubeconfig names; None takes what kubectl would take."""
    namespace: str | None
    """None takes the kubeconfig's."""


def run_in_cluster(host: Host, target: Target, work: Callable[[KubeClient, str], Awaitable[Result]]) -> Result:
    """What `work(client, namespace)` returns. Raises CommandError, naming the fix, if the API server cannot be asked or refuses."""
    try:
        access = _access(host, target.kubeconfig)
    except KubeAccessError as error:
        raise CommandError(str(error)) from None

    async def working() -> Result:
        async with KubeClient(access, user_agent=f"quire/{VERSION}") as client:
            return await work(client, target.namespace or access.namespace)

    try:
        return asyncio.run(working())
    except KubeAccessError as error:
        raise CommandError(str(error)) from None
    except KubeError as error:
        raise _in_words(error, access.server) from None


def _access(host: Host, kubeconfig: Path | None) -> KubeAccess:
    if kubeconfig is not None:
        return KubeAccess.from_kubeconfig(kubeconfig, environ=host.environ)
    named = [Path(part) for part in host.environ.get("KUBECONFIG", "").split(":") if part]
    candidates = named or [host.home / ".kube" / "config"]
    existing = [path for path in candidates if path.is_file()]
    if existing:
        return KubeAccess.from_kubeconfig(existing[0], environ=host.environ)
    if not named and "KUBERNETES_SERVICE_HOST" in host.environ:
        return KubeAccess.in_cluster(
            host=host.environ["KUBERNETES_SERVICE_HOST"], port=host.environ.get("KUBERNETES_SERVICE_PORT", "443")
        )
    raise KubeAccessError(f"{candidates[0]}: there is no such kubeconfig; name one with --kubeconfig or KUBECONFIG")


def _in_words(error: KubeError, server: str) -> CommandError:
    if error.status == 0:
        return CommandError(f"{server}: {error.message}", exit_code=EXIT_FAILED)
    if error.status == 404 and "could not find the requested resource" in error.message:
        message = "this cluster does not know Quire's resources; install the chart quire-crds"
        return CommandError(message, exit_code=EXIT_FAILED)
    lines = [error.message or error.reason]
    if fix := _FIXES.get(error.status):
        lines.append(fix)
    return CommandError(*lines, exit_code=EXIT_FAILED)
