"""`quire tenant`: options in, text and exit codes out. A new key goes to standard output, alone, so that a script can take it; all that
is said about it goes to standard error. The work is elsewhere.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from quire_cli.cluster.connection import Target, run_in_cluster
from quire_cli.cluster.table import aligned
from quire_cli.errors import CommandError
from quire_cli.host import Host
from quire_cli.tenant.documents import (
    SUMMARY_TITLES,
    Limits,
    NewTenant,
    TenantDocument,
    made_tenant,
    rotated,
    summary_row,
    without_key,
)
from quire_cli.tenant.keys import NewKey, new_key, parse_duration
from quire_cli.tenant.store import ClusterTenants, FileTenants, TenantStore
from quire_cli.tenant.usage import UsageQuery, fetch_usage, find_admin

Result = TypeVar("Result")
Name = Annotated[str, typer.Argument(help="The tenant's name.", show_default=False)]
File = Annotated[
    Path | None,
    typer.Option(
        "--file", "-f", help="The YAML file that quire up serves, instead of a cluster.", show_default="a cluster"
    ),
]
Namespace = Annotated[
    str | None, typer.Option("-n", "--namespace", help="Its namespace.", show_default="the kubeconfig's")
]
Kubeconfig = Annotated[
    Path | None, typer.Option(help="How to reach the cluster.", show_default="$KUBECONFIG, or ~/.kube/config")
]
ExpiresIn = Annotated[
    str | None, typer.Option(metavar="TIME", help="Life of the new key, such as 90d.", show_default="for ever")
]
Number = Annotated[int | None, typer.Option(min=1, show_default="not limited")]
KEEP_IT = "This is the only time that the key is shown; it is stored nowhere."


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where tenants are kept."""

    host: Host
    file: Path | None
    namespace: str | None = None
    kubeconfig: Path | None = None

    def run(self, work: Callable[[TenantStore], Awaitable[Result]]) -> Result:
        """What `work` returns. CommandError for flags that do not go together, or what keeps it from being done."""
        if self.file is None:
            target = Target(kubeconfig=self.kubeconfig, namespace=self.namespace)
            return run_in_cluster(self.host, target, lambda client, where: work(ClusterTenants(client, where)))
        if self.namespace is not None or self.kubeconfig is not None:
            raise CommandError("--file is for quire up, -n and --kubeconfig are for a cluster; leave one of them out")
        store = FileTenants(self.file)

        async def working() -> Result:
            return await work(store)

        return asyncio.run(working())


def add_tenant_commands(app: typer.Typer, host: Host) -> None:
    """Adds `quire tenant` with create, rotate, revoke, list and usage."""
    group = typer.Typer(
        name="tenant", help="Make tenants and keys, replace and revoke keys, show usage.", no_args_is_help=True
    )
    _add_create(group, host)
    _add_rotate(group, host)
    _add_revoke_and_list(group, host)
    _add_usage(group, host)
    app.add_typer(group)


def _add_create(group: typer.Typer, host: Host) -> None:
    @group.command()
    def create(  # noqa: PLR0913 - each is a flag
        name: Name,
        model: Annotated[
            list[str] | None,
            typer.Option(help="A model or route that it may use; may be repeated.", show_default="all"),
        ] = None,
        requests_per_minute: Number = None,
        tokens_per_minute: Number = None,
        tokens_per_day: Number = None,
        tokens_per_month: Number = None,
        max_concurrent_requests: Number = None,
        credit: Annotated[
            str | None, typer.Option(help="Paid in advance, such as 250.00; makes it prepaid.", show_default="postpaid")
        ] = None,
        priority: Annotated[int, typer.Option(min=-100, max=100, help="Higher goes first.")] = 0,
        weight: Annotated[int, typer.Option(min=1, max=1000, help="Share among tenants of one priority.")] = 1,
        display_name: Annotated[str | None, typer.Option(help="For people.", show_default=False)] = None,
        key_id: Annotated[
            str | None, typer.Option(help="Name of the key.", show_default="the day and six digits")
        ] = None,
        expires_in: ExpiresIn = None,
        file: File = None,
        namespace: Namespace = None,
        kubeconfig: Kubeconfig = None,
    ) -> None:
        """Make a tenant with one key, which is printed once."""
        key = _new_key(expires_in, key_id)
        wanted = NewTenant(
            name=name,
            display_name=display_name,
            models=tuple(model or ()),
            limits=Limits(
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                tokens_per_day=tokens_per_day,
                tokens_per_month=tokens_per_month,
                max_concurrent_requests=max_concurrent_requests,
            ),
            credit=credit,
            priority=priority,
            weight=weight,
        )
        document = made_tenant(wanted, key)
        place = Place(host=host, file=file, namespace=namespace, kubeconfig=kubeconfig)
        _tell(place.run(lambda store: store.create(document)))
        _show_once(key)


def _add_rotate(group: typer.Typer, host: Host) -> None:
    @group.command()
    def rotate(
        name: Name,
        key_id: Annotated[
            str | None, typer.Option(help="The key that is replaced.", show_default="the only one that does not expire")
        ] = None,
        overlap: Annotated[
            str, typer.Option(metavar="TIME", help="How long the old key still works; 0: not at all.")
        ] = "24h",
        expires_in: ExpiresIn = None,
        file: File = None,
        namespace: Namespace = None,
        kubeconfig: Kubeconfig = None,
    ) -> None:
        """Add a key, which is printed once, and let the old one expire."""
        rest, key = parse_duration("--overlap", overlap), _new_key(expires_in, None)

        async def work(store: TenantStore) -> Sequence[str]:
            change = rotated(await store.get(name), key, replaced=key_id, overlap=rest, now=datetime.now(UTC))
            return [*change.lines, *await store.write_keys(change.document)]

        _tell(Place(host=host, file=file, namespace=namespace, kubeconfig=kubeconfig).run(work))
        _show_once(key)


def _add_revoke_and_list(group: typer.Typer, host: Host) -> None:
    @group.command()
    def revoke(
        name: Name,
        key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id.", show_default=False)],
        file: File = None,
        namespace: Namespace = None,
        kubeconfig: Kubeconfig = None,
    ) -> None:
        """Take a key away: within two seconds, every router refuses it."""

        async def work(store: TenantStore) -> Sequence[str]:
            change = without_key(await store.get(name), key_id)
            return [*change.lines, *await store.write_keys(change.document)]

        _tell(Place(host=host, file=file, namespace=namespace, kubeconfig=kubeconfig).run(work))

    @group.command("list")
    def list_command(file: File = None, namespace: Namespace = None, kubeconfig: Kubeconfig = None) -> None:
        """Show the tenants with their keys' ids (* for those that expire) and limits."""

        async def work(store: TenantStore) -> Sequence[TenantDocument]:
            return await store.list()

        documents = Place(host=host, file=file, namespace=namespace, kubeconfig=kubeconfig).run(work)
        now = datetime.now(UTC)
        _print(aligned(SUMMARY_TITLES, [summary_row(one, now) for one in documents]) if documents else ["no tenants"])


def _add_usage(group: typer.Typer, host: Host) -> None:
    @group.command()
    def usage(  # noqa: PLR0913 - each is a flag
        name: Name,
        model: Annotated[str | None, typer.Option(help="Only this model's.", show_default="all")] = None,
        from_day: Annotated[
            str | None,
            typer.Option("--from", metavar="DAY", help="First day, as 2026-11-01.", show_default="this month"),
        ] = None,
        to_day: Annotated[
            str | None, typer.Option("--to", metavar="DAY", help="Last day, UTC.", show_default="today")
        ] = None,
        group_by: Annotated[str, typer.Option(help="What is told apart: day, model, or both.")] = "day,model",
        records: Annotated[bool, typer.Option("--records", help="Every single request instead of sums.")] = False,
        shown: Annotated[Literal["table", "csv", "json"], typer.Option("--format", help="How it is shown.")] = "table",
        namespace: Annotated[
            str | None, typer.Option("-n", "--namespace", help="The tenant's; not under quire up.", show_default=False)
        ] = None,
        admin_url: Annotated[
            str | None,
            typer.Option(help="Address of a router's admin port.", show_default="the quire up that runs here"),
        ] = None,
        admin_token_file: Annotated[
            Path | None, typer.Option(help="File with the admin token.", show_default="$QUIRE_ADMIN_TOKEN")
        ] = None,
    ) -> None:
        """Show what a tenant has used, and what it cost."""
        admin = find_admin(admin_url, admin_token_file, host.environ)
        tenant = name if namespace is None else f"{namespace}/{name}"
        groups = None if records else group_by
        query = UsageQuery(tenant=tenant, model=model, from_day=from_day, to_day=to_day, group_by=groups)
        _print(fetch_usage(admin, query, shown))


def _new_key(expires_in: str | None, key_id: str | None) -> NewKey:
    life = None if expires_in is None else parse_duration("--expires-in", expires_in)
    if life is not None and not life:
        raise CommandError("--expires-in 0: the key would never work; give it some time, such as 90d")
    return new_key(datetime.now(UTC), life, key_id)


def _show_once(key: NewKey) -> None:
    """After the tenant was written: a key that is shown works."""
    _tell([KEEP_IT])
    typer.echo(key.key)


def _tell(lines: Sequence[str]) -> None:
    for line in lines:
        typer.echo(_plain(line), err=True)


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        typer.echo(_plain(line))


def _plain(line: str) -> str:
    """What comes from elsewhere is not let at the terminal's control characters."""
    return "".join(character if character.isprintable() else "?" for character in line)
