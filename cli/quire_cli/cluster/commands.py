"""The commands of `quire` that work on a cluster: options in, text and exit codes out. The work is elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from quire_cli.cluster.connection import Target, run_in_cluster
from quire_cli.cluster.pause import set_paused
from quire_cli.cluster.rollback import roll_back
from quire_cli.cluster.status import status_of_all, status_of_one
from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.host import Host

Name = Annotated[str, typer.Argument(help="Name of the InferenceService.", show_default=False)]
OneName = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="Name of an InferenceService.", show_default="all")
]
Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Its namespace.", show_default="the kubeconfig's")
]
Kubeconfig = Annotated[
    Path | None, typer.Option(help="How to reach the cluster.", show_default="$KUBECONFIG, or ~/.kube/config")
]


def add_cluster_commands(app: typer.Typer, host: Host) -> None:
    """Adds status, rollback, pause and resume."""

    @app.command()
    def status(
        name: OneName = None,
        namespace: Namespace = None,
        all_namespaces: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Every namespace's.")] = False,
        kubeconfig: Kubeconfig = None,
    ) -> None:
        """Say whether services are ready, and if not, why and what to do. Exit code 1 if one is not; no replicas wanted is no failure."""
        if name is not None and all_namespaces:
            raise CommandError("-A shows every service; leave it out, or leave the name out")
        target = Target(kubeconfig=kubeconfig, namespace=namespace)
        if name is not None:
            lines, ready = run_in_cluster(host, target, lambda client, where: status_of_one(client, where, name))
        else:
            lines, ready = run_in_cluster(
                host, target, lambda client, where: status_of_all(client, None if all_namespaces else where)
            )
        _print(lines)
        if not ready:
            raise typer.Exit(EXIT_FAILED)

    @app.command()
    def rollback(
        name: Name,
        to: Annotated[
            str | None,
            typer.Option(metavar="REVISION", help="Number or name of a revision.", show_default="the one before"),
        ] = None,
        force: Annotated[bool, typer.Option("--force", help="Though a GitOps tool would undo it.")] = False,
        namespace: Namespace = None,
        kubeconfig: Kubeconfig = None,
    ) -> None:
        """Give a service's pods the shape that they had in an earlier revision. Replicas, scaling and rollout stay as they are."""
        target = Target(kubeconfig=kubeconfig, namespace=namespace)
        _print(run_in_cluster(host, target, lambda client, where: roll_back(client, where, name, to=to, force=force)))

    @app.command()
    def pause(name: Name, namespace: Namespace = None, kubeconfig: Kubeconfig = None) -> None:
        """Let the operator change nothing of a service; its pods go on serving."""
        target = Target(kubeconfig=kubeconfig, namespace=namespace)
        _print(run_in_cluster(host, target, lambda client, where: set_paused(client, where, name, paused=True)))

    @app.command()
    def resume(name: Name, namespace: Namespace = None, kubeconfig: Kubeconfig = None) -> None:
        """Let the operator look after a paused service again."""
        target = Target(kubeconfig=kubeconfig, namespace=namespace)
        _print(run_in_cluster(host, target, lambda client, where: set_paused(client, where, name, paused=False)))


def _print(lines: Sequence[str]) -> None:
    """What comes from a cluster is not let at the terminal's control characters."""
    for line in lines:
        typer.echo("".join(character if character.isprintable() else "?" for character in line))
