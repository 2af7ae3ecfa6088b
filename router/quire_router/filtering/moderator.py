"""Asks an outside moderator. It must not know what an answer looks like, nor keep requests waiting for one that does not answer.

    POST url  {"stage": "prompt" | "output", "model": str, "tenant": str | null, "request_id": str, "input": [str, ...]}
    200       {"action": "allow" | "block" | "flag", "categories": [str, ...]}      or OpenAI's {"results": [{"flagged": bool, ...}]}

A moderator that failed FAILURES times in a row is not asked for PAUSE_S seconds; one request then tries it again.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import aiohttp
import msgspec

from quire_contract.router_settings import ModerationHook
from quire_contract.telemetry import log_event
from quire_router.call import Call
from quire_router.filtering.rules import HookRule, Stage

log = logging.getLogger("quire_router.filters")

FAILURES = 3
PAUSE_S = 5.0
MAX_ANSWER_BYTES = 64 * 1024
MAX_CONCURRENT = 256
"""Questions at once over all moderators; more wait, each no longer than its timeout."""
Verdict = Literal["allow", "block", "flag", "failed"]


class _Result(msgspec.Struct, frozen=True):
    flagged: bool


class _Answer(msgspec.Struct, frozen=True):
    action: Literal["allow", "block", "flag"] | None = None
    categories: list[str] = []
    results: list[_Result] | None = None


class _Question(msgspec.Struct, frozen=True):
    stage: Stage
    model: str
    tenant: str | None
    request_id: str
    input: list[str]


class Moderator:
    """Asks all hooks. One for the process; `secrets` are the environment variables that hooks may name."""

    def __init__(
        self, session: aiohttp.ClientSession, *, secrets: Mapping[str, str], clock: Callable[[], float]
    ) -> None:
        self._session = session
        self._secrets = secrets
        self._clock = clock
        self._room = asyncio.Semaphore(MAX_CONCURRENT)
        self._failures: dict[str, int] = {}
        self._closed_until_s: dict[str, float] = {}

    async def ask(self, rule: HookRule, stage: Stage, call: Call, texts: Sequence[str]) -> Verdict:
        """What it says of these texts. "failed": it does not answer, and requests must not pass then."""
        hook = rule.hook
        verdict: Verdict | None = None
        if self._may_ask(hook.url):
            try:
                async with asyncio.timeout(hook.timeout_s), self._room:
                    verdict = await self._asked(hook, _question(stage, call, texts))
                self._failures.pop(hook.url, None)
            except (TimeoutError, aiohttp.ClientError, OSError, msgspec.DecodeError, ValueError) as error:
                self._note_failure(rule, error)
        if verdict is None:
            return "failed" if hook.on_failure == "closed" and rule.may_block else "allow"
        return "flag" if verdict == "block" and not rule.may_block else verdict

    def keep_only(self, urls: frozenset[str]) -> None:
        """Forget moderators that are no longer configured."""
        for known in (self._failures, self._closed_until_s):
            for url in known.keys() - urls:
                del known[url]

    def _may_ask(self, url: str) -> bool:
        now_s = self._clock()
        if now_s < self._closed_until_s.get(url, now_s):
            return False
        if self._failures.get(url, 0) >= FAILURES:
            self._closed_until_s[url] = now_s + PAUSE_S  # this one tries; the others do not wait for it
        return True

    def _note_failure(self, rule: HookRule, error: Exception) -> None:
        url = rule.hook.url
        failures = self._failures[url] = self._failures.get(url, 0) + 1
        if failures >= FAILURES:
            self._closed_until_s[url] = self._clock() + PAUSE_S
        log_event(
            log, logging.WARNING, "moderator_failed", filter=rule.name, error=type(error).__name__, in_a_row=failures
        )

    async def _asked(self, hook: ModerationHook, question: bytes) -> Verdict:
        headers = {"Content-Type": "application/json"}
        secret = self._secrets.get(hook.header_env, "") if hook.header_env else ""
        if secret:
            headers["Authorization"] = secret
        async with self._session.post(hook.url, data=question, headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = await response.content.read(MAX_ANSWER_BYTES + 1)
            while len(body) <= MAX_ANSWER_BYTES and not response.content.at_eof():
                body += await response.content.read(MAX_ANSWER_BYTES + 1)
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError("the answer is too long")
        answer = msgspec.json.decode(body, type=_Answer)
        if answer.action is not None:
            return answer.action
        if answer.results:
            return "block" if any(result.flagged for result in answer.results) else "allow"
        raise ValueError("the answer has neither action nor results")


def _question(stage: Stage, call: Call, texts: Sequence[str]) -> bytes:
    tenant = None if call.tenant is None else call.tenant.entry.id
    return msgspec.json.encode(_Question(stage, call.model, tenant, call.request_id, list(texts)))
