"""`quire tenant usage`: asks a router's admin API what a tenant used, and shows it. This module must not know how usage is counted."""

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import aiohttp

from quire_cli.cluster.table import aligned
from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.local.run_folder import ADMIN_FILE, running_folders
from quire_contract import names

_TIMEOUT_S = 60.0
MAX_ROWS = 10_000
"""The most that the admin API gives at once; a CSV has all."""
MAX_NAMED = 10
"""Tenants that an error names."""


@dataclass(frozen=True, kw_only=True)
class AdminApi:
    """Where the admin API is, and what lets us in."""

    url: str
    token: str


@dataclass(frozen=True, kw_only=True)
class UsageQuery:
    """What is asked for."""

    tenant: str
    model: str | None = None
    from_day: str | None = None
    to_day: str | None = None
    """Counted, too."""
    group_by: str | None = "day,model"
    """Columns that are told apart; None: every record."""

    def parameters(self, answer_format: str) -> dict[str, str]:
        """Of the request."""
        wanted = {
            "tenant": self.tenant,
            "model": self.model,
            "from": self.from_day,
            "to": self.to_day,
            "group_by": self.group_by,
            "format": answer_format,
            "limit": str(MAX_ROWS) if answer_format == "json" else None,
        }
        return {name: value for name, value in wanted.items() if value is not None}


def find_admin(url: str | None, token_file: Path | None, environ: Mapping[str, str]) -> AdminApi:
    """What the flags name, else the `quire up` that runs here. CommandError that says how to reach a cluster's."""
    if url is None:
        return _local_admin(Path(tempfile.gettempdir()))
    token = environ.get(names.ENV_ADMIN_TOKEN, "")
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--admin-token-file {token_file}: cannot be read: {error}") from None
    if not token:
        raise CommandError(
            f"--admin-url needs the admin token; name its file with --admin-token-file, or set {names.ENV_ADMIN_TOKEN}"
        )
    return AdminApi(url=url.rstrip("/"), token=token)


def fetch_usage(admin: AdminApi, query: UsageQuery, shown: str) -> list[str]:
    """The lines to print; `shown` is table, csv or json. CommandError for a tenant that has used nothing and that nobody knows."""
    text = asyncio.run(_ask(admin, names.PATH_ADMIN_USAGE, query.parameters("csv" if shown == "csv" else "json")))
    if shown == "csv":
        lines = text.splitlines()
        if len(lines) < 2:
            _check_known(admin, query.tenant)
        return lines
    answer = _json(admin, text)
    if isinstance(answer, dict) and not answer.get("data"):
        _check_known(admin, query.tenant)
    return json.dumps(answer, indent=2).splitlines() if shown == "json" else usage_table(answer)


def _check_known(admin: AdminApi, tenant: str) -> None:
    """Somebody who never was is not somebody who used nothing."""
    if _ids(admin, {"tenant": tenant}):
        return
    known = _ids(admin, {})
    alike = get_close_matches(tenant, known, n=1, cutoff=0.6) or [one for one in known if one.endswith(f"/{tenant}")]
    hint = f"; did you mean {alike[0]}?" if alike else f"; there are: {', '.join(known[:MAX_NAMED])}" if known else ""
    raise CommandError(
        f"there is no tenant {tenant}{hint}",
        *(["a tenant of a cluster is named with its namespace: -n NAMESPACE"] if "/" in "".join(known) else []),
        exit_code=EXIT_FAILED,
    )


def _ids(admin: AdminApi, parameters: Mapping[str, str]) -> list[str]:
    """Of the tenants that the router knows, the first hundred at most."""
    answer = _json(admin, asyncio.run(_ask(admin, names.PATH_ADMIN_TENANTS, parameters)))
    rows = answer.get("data") if isinstance(answer, dict) else None
    return [str(row.get("id")) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _json(admin: AdminApi, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise CommandError(f"{admin.url}: answers something else than JSON; is it the admin port?") from None


def usage_table(answer: Any) -> list[str]:
    """Rows of the answer's `data`, a column for each field."""
    rows = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        raise CommandError("the admin API's answer holds no data; is it of another version?", exit_code=EXIT_FAILED)
    if not rows:
        return ["no usage in that time"]
    titles = list(dict.fromkeys(name for row in rows for name in row))
    shown = [f"COST {answer.get('currency') or ''}".rstrip() if title == "cost" else title.upper() for title in titles]
    lines = aligned(shown, [_cells(row, titles) for row in rows])
    return [*lines, "there is more: ask for fewer days, or for --format csv"] if answer.get("has_more") else lines


def _cells(row: Mapping[str, Any], titles: Sequence[str]) -> list[str]:
    return ["-" if row.get(title) is None else _cell(title, row[title]) for title in titles]


def _cell(title: str, value: Any) -> str:
    """Times are for people here; CSV and JSON have Unix time."""
    if title == "ts" and isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC).isoformat(sep=" ", timespec="seconds")
    return str(value)


async def _ask(admin: AdminApi, path: str, parameters: Mapping[str, str]) -> str:
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {admin.token}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as http,
            http.get(admin.url + path, params=parameters, headers=headers) as answer,
        ):
            text = await answer.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise CommandError(f"{admin.url}: cannot be asked: {error or 'no answer'}", exit_code=EXIT_FAILED) from None
    if answer.status != 200:
        raise CommandError(f"{admin.url}: {_problem(answer.status, text)}", exit_code=EXIT_FAILED)
    return text


def _problem(status: int, text: str) -> str:
    if status == 401:
        return "refuses the admin token; take the one of this release"
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return f"answers {status}"


def _local_admin(parent: Path) -> AdminApi:
    found = [folder / ADMIN_FILE for folder in running_folders(parent) if (folder / ADMIN_FILE).is_file()]
    if len(found) == 1:
        entry = json.loads(found[0].read_text(encoding="utf-8"))
        return AdminApi(url=entry["url"], token=entry["token"])
    if found:
        pids = ", ".join(path.parent.name.split("-")[2] for path in found)
        raise CommandError(f"several quire up run here (processes {pids}); name one's address with --admin-url")
    raise CommandError(
        "no quire up runs here; for a cluster, forward the admin port and name it:",
        "    kubectl port-forward -n NAMESPACE service/RELEASE-router-admin 8081:8081",
        "    kubectl get secret -n NAMESPACE RELEASE-router-admin -o jsonpath='{.data.token}' | base64 -d > admin-token",
        "    quire tenant usage NAME --admin-url http://127.0.0.1:8081 --admin-token-file admin-token",
        exit_code=EXIT_FAILED,
    )
