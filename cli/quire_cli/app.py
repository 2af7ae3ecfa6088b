"""The commands of `quire`: options in, messages and exit codes out. The work is elsewhere.

This module must not read the environment or the command line itself: `__main__` passes a `Host`.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from quire_cli.cluster.commands import add_cluster_commands
from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.host import Host
from quire_cli.local.checks import UpOptions
from quire_cli.local.up import run_up
from quire_cli.manifest_files import load_resources
from quire_cli.rendering import render, to_yaml, without_objects
from quire_cli.simulate.commands import add_simulate_command
from quire_cli.tenant.commands import add_tenant_commands
from quire_operator.api.crds.definitions import write_crds
from quire_operator.platform import VERSION

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="Manifests with InferenceServices, and ModelRoutes and Tenants; several documents each.",
        show_default=False,
    ),
]


def build_app(host: Host) -> typer.Typer:
    """The command line application."""
    app = typer.Typer(
        name="quire",
        help="Serve large language models, on this machine or on Kubernetes.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.command()
    def up(
        files: Files,
        port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the endpoint; 0 takes a free one.")] = 8000,
        host_address: Annotated[
            str, typer.Option("--host", help="Address that the endpoint listens on; 0.0.0.0 for every interface.")
        ] = "127.0.0.1",
        log_dir: Annotated[
            Path | None, typer.Option(help="Folder for the logs; without it, they are removed at the end.")
        ] = None,
        compute_threads: Annotated[
            int | None,
            typer.Option(
                min=1, help="Compute threads per worker.", show_default="cores / workers that may run at once"
            ),
        ] = None,
        router_settings: Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="The router's settings, YAML or JSON.", show_default="the defaults"),
        ] = None,
        require_tenant: Annotated[
            bool, typer.Option("--require-tenant", help="Refuse requests without a tenant's key, even without tenants.")
        ] = False,
    ) -> None:
        """Serve the models of FILE... with local processes, as the operator would with pods. Ctrl-C stops.

        Tenants, routes and settings are followed: what changes in the files holds within two seconds. So do replicas, scaling, routing and
        prices of a service. Services with scaling follow demand, from zero and back.
        """
        options = UpOptions(
            files=tuple(files),
            port=port,
            address=host_address,
            log_dir=log_dir,
            compute_threads=compute_threads,
            router_settings=router_settings,
            require_tenant=require_tenant,
        )
        run_up(options, host, Console(soft_wrap=True))

    @app.command("render")
    def render_command(files: Files) -> None:
        """Print the Kubernetes objects that FILE... stand for, in a release with the chart's defaults."""
        loaded = load_resources(files)
        if loaded.services:
            typer.echo(to_yaml(render(loaded.services).manifests), nl=False)
        for line in map(without_objects, loaded.others):
            typer.echo(line, err=True)

    @app.command()
    def crds(folder: Annotated[Path, typer.Argument(help="Folder to write to.")]) -> None:
        """Write the CustomResourceDefinitions as YAML files."""
        for path in write_crds(folder):
            typer.echo(path)

    add_cluster_commands(app, host)
    add_tenant_commands(app, host)
    add_simulate_command(app)

    @app.command()
    def version() -> None:
        """Print the version."""
        typer.echo(f"quire {VERSION}")

    return app


def run_command(host: Host, arguments: list[str]) -> int:
    """Runs one command. The exit code."""
    try:
        build_app(host)(args=arguments)
    except CommandError as error:
        for line in error.lines:
            typer.echo(f"error: {line}", err=True)
        return error.exit_code
    except SystemExit as end:  # how typer ends every command, usage errors included
        return end.code if isinstance(end.code, int) else EXIT_FAILED
    return 0
