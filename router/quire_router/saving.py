"""The layer that does not compute an answer twice: deterministic requests get an answer that is kept, or one that is just being made.

    kept in memory -> being made for somebody else -> kept in Redis -> made now, kept at its proper end

Streamed and whole answers are kept apart, each byte for byte as its worker sent it, ids and times included; a kept stream comes at once.
What a client's Cache-Control asks is obeyed. Both halves are off until the release's settings turn them on, and off for tenants that do
not want them.
"""

from collections.abc import AsyncGenerator, Awaitable

import msgspec

from quire_contract import names
from quire_contract.error_form import request_id_headers
from quire_contract.openai.errors import ApiError
from quire_contract.router_config import RouterConfig
from quire_contract.router_settings import SavingSettings
from quire_router.answer import Answer, Source
from quire_router.cache_control import CacheWishes, cache_wishes
from quire_router.call import Call, Outcome
from quire_router.clocks import Clocks
from quire_router.live_config import LiveConfig
from quire_router.model_versions import ModelVersions
from quire_router.proper_end import EndWatch, is_proper
from quire_router.redis_answers import RedisAnswers
from quire_router.request_identity import answer_key
from quire_router.saving_metrics import CacheResult, SavingMetrics
from quire_router.shared_generation import Generation, Owns, SharedBytes
from quire_router.stored_answers import AnswerMemory, ModelVersion, StoredAnswer

COALESCE_OFF = "off"
_Headers = list[tuple[str, str]]
"""As they were when the answer began: outer layers add what is of one call only."""
_OF_ONE_CALL = frozenset({names.HEADER_REQUEST_ID, names.HEADER_ANTHROPIC_REQUEST_ID, "age"})


class SavingLayer:
    """One for the process."""

    def __init__(
        self,
        *,
        live: LiveConfig,
        versions: ModelVersions,
        redis: RedisAnswers | None,
        metrics: SavingMetrics,
        clocks: Clocks,
    ) -> None:
        self._live = live
        self._versions = versions
        self._redis = redis
        self._metrics = metrics
        self._clocks = clocks
        self._memory = AnswerMemory(0)
        self._shared = SharedBytes()
        self._running: dict[bytes, _Running] = {}
        live.follow(self._configure)
        metrics.show_bytes(lambda: self._memory.num_bytes, lambda: self._shared.num_bytes)

    def _configure(self, config: RouterConfig) -> None:
        saving = self._live.settings.saving
        self._memory.resize(saving.response_cache_mib * 1024 * 1024 if saving.response_cache else 0)
        self._versions.follow(config)

    @property
    def is_on(self) -> bool:
        """Whether the configuration has answers kept, or shared."""
        saving = self._live.settings.saving
        return saving.response_cache or saving.coalesce

    def answer(self, call: Call, outcome: Outcome, inner: Source) -> Awaitable[Answer]:
        """The inner answer, or one like it that exists already."""
        if not self.is_on or _does_not_want(call):
            return inner(call, outcome)
        return self._saved(call, outcome, inner, self._live.settings.saving)

    async def _saved(self, call: Call, outcome: Outcome, inner: Source, saving: SavingSettings) -> Answer:
        wishes = cache_wishes(call.headers)
        key = None if wishes.no_store else answer_key(call)
        if key is None:
            if wishes.only_if_cached:
                raise _not_cached()
            return self._marked(await inner(call, outcome), "bypass")
        request = _Request(call=call, outcome=outcome, inner=inner, key=key, wishes=wishes, saving=saving)
        found = self._recall(request) or await self._join(request)
        if found is None and self._redis is not None and saving.response_cache and not wishes.no_cache:
            found = self._give(request, await self._redis.get(key), is_news=True) or await self._join(request)
        if found is not None:
            return found
        if wishes.only_if_cached:
            raise _not_cached()
        return await self._make(request)

    # Answers that are kept

    def _recall(self, request: "_Request") -> Answer | None:
        if request.wishes.no_cache or not request.saving.response_cache:
            return None
        return self._give(request, self._memory.get(_group(request.call), request.key), is_news=False)

    def _give(self, request: "_Request", stored: StoredAnswer | None, *, is_news: bool) -> Answer | None:
        """A kept answer for this call. None: it is too old, or its model has changed. `is_news`: memory does not have it."""
        call, outcome = request.call, request.outcome
        if stored is None:
            return None
        age_s = max(0.0, self._clocks.wall() - stored.stored_ts)
        if age_s > request.saving.response_ttl_s or stored.version not in self._versions.current(stored.target):
            self._memory.drop(_group(call), request.key)
            return None
        if request.wishes.max_age_s is not None and age_s > request.wishes.max_age_s:
            return None
        if is_news:
            self._memory.put(_group(call), request.key, stored)
        outcome.target, outcome.cached_answer = stored.target, "cache"
        outcome.first_byte_s = self._clocks.monotonic()
        headers = stored.header_map()
        headers.update(request_id_headers(call.path, call.request_id))
        headers["Age"] = str(int(age_s))
        if not stored.is_events:
            return self._marked(Answer(status=200, headers=headers, body=stored.body), "hit")
        parts = _at_once(stored.body)
        return self._marked(Answer(status=200, headers=headers, parts=parts, is_events=True), "hit")

    def _keep(self, request: "_Request", stored: StoredAnswer) -> None:
        self._memory.put(_group(request.call), request.key, stored)
        if self._redis is not None:
            saving = request.saving
            max_bytes = saving.response_cache_mib * 1024 * 1024
            self._redis.put(request.key, stored, ttl_s=saving.response_ttl_s, max_bytes=max_bytes)

    # Answers that are being made

    async def _join(self, request: "_Request") -> Answer | None:
        """The answer that somebody else's equal request gets. None: there is none to join."""
        call, outcome = request.call, request.outcome
        running = self._running.get(_running_key(call, request.key)) if _shares(request) else None
        if running is None or request.wishes.no_cache or request.wishes.only_if_cached:
            return None
        try:
            answer = await running.generation.join(_owner_of(outcome))
        except ApiError as error:
            if error.status == 401:  # the key of who began it, which is not ours
                return None
            raise
        _note_same(outcome, running.outcome)
        outcome.first_byte_s = self._clocks.monotonic()
        answer.headers.update(request_id_headers(call.path, call.request_id))
        return self._marked(_noting(answer, outcome, running.outcome), "shared")

    async def _make(self, request: "_Request") -> Answer:
        if not _shares(request):
            return self._marked(await self._begin(request), "miss")
        place = _running_key(request.call, request.key)

        def closed(generation: Generation) -> None:
            running = self._running.get(place)
            if running is not None and running.generation is generation:
                del self._running[place]

        generation = Generation(
            lambda: self._begin(request),
            max_join_bytes=request.saving.max_response_kib * 1024,
            shared=self._shared,
            on_closed=closed,
        )
        self._running[place] = _Running(generation=generation, outcome=request.outcome)
        return self._marked(await generation.join(_owner_of(request.outcome)), "miss")

    async def _begin(self, request: "_Request") -> Answer:
        """A worker's answer, kept at its end if that is proper."""
        answer = await request.inner(request.call, request.outcome)
        version = self._version(request)
        if not request.saving.response_cache or answer.status != 200 or version is None or _must_not_be_kept(answer):
            return answer
        headers = [(name.lower(), value) for name, value in answer.headers.items() if _is_kept(name)]
        if answer.body is not None:
            self._keep_whole(request, headers, answer.body, version)
            return answer
        return answer.through(self._recorded(request, answer, headers, version))

    async def _recorded(
        self, request: "_Request", answer: Answer, headers: _Headers, version: ModelVersion
    ) -> AsyncGenerator[bytes, None]:
        assert answer.parts is not None, "a whole answer is kept otherwise"
        max_bytes = request.saving.max_response_kib * 1024
        watch = EndWatch(request.call.path) if answer.is_events else None
        parts: list[bytes] | None = []
        size = 0
        async for part in answer.parts:
            size += len(part)
            if parts is not None and size <= max_bytes:
                parts.append(part)
                if watch is not None:
                    watch.feed(part)
            else:
                parts = None
            yield part
        if parts is None:
            return
        if watch is None:
            self._keep_whole(request, headers, b"".join(parts), version)
        elif watch.is_proper:
            self._keep_body(request, headers, b"".join(parts), version, is_events=True)

    def _keep_whole(self, request: "_Request", headers: _Headers, body: bytes, version: ModelVersion) -> None:
        if len(body) <= request.saving.max_response_kib * 1024 and is_proper(request.call.path, body):
            self._keep_body(request, headers, body, version, is_events=False)

    def _keep_body(
        self, request: "_Request", headers: _Headers, body: bytes, version: ModelVersion, *, is_events: bool
    ) -> None:
        if self._version(request) != version:
            return  # another worker ended what the first began
        stored = StoredAnswer(
            stored_ts=self._clocks.wall(),
            target=request.call.targets[0],
            version=version,
            is_events=is_events,
            headers=headers,
            body=body,
        )
        self._keep(request, stored)

    def _version(self, request: "_Request") -> ModelVersion | None:
        """Of the worker that answers. None: not of the model that the key speaks of, or gone."""
        outcome = request.outcome
        if outcome.choice is None or outcome.target != request.call.targets[0]:
            return None
        return self._versions.of_endpoint(outcome.choice.endpoint_id)

    def _marked(self, answer: Answer, result: CacheResult) -> Answer:
        answer.headers[names.HEADER_CACHE] = result
        self._metrics.count(result)
        return answer


class _Request(msgspec.Struct, frozen=True, kw_only=True):
    """One call on its way through the layer."""

    call: Call
    outcome: Outcome
    inner: Source
    key: bytes
    wishes: CacheWishes
    saving: SavingSettings
    """As they were when it came."""


class _Running(msgspec.Struct, frozen=True, kw_only=True):
    generation: Generation
    outcome: Outcome
    """Of the call that began it."""


def _owner_of(outcome: Outcome) -> Owns:
    """Only the owner's answer counts as made for its call; what it is when the answer is closed holds."""

    def owns(is_owner: bool) -> None:
        outcome.cached_answer = "" if is_owner else "shared"

    return owns


def _note_same(outcome: Outcome, made: Outcome) -> None:
    """What became of the generation became of this call as well: if it pays in the end, it pays for what was really used."""
    outcome.target, outcome.choice, outcome.usage = made.target, made.choice, made.usage
    if made.late_status:
        outcome.late_status = outcome.status = made.late_status


def _noting(answer: Answer, outcome: Outcome, made: Outcome) -> Answer:
    """A stream may begin before its worker is known: look again when it is closed."""
    if answer.parts is None:
        return answer

    async def close() -> None:
        try:
            await answer.close()
        finally:
            _note_same(outcome, made)

    return Answer(
        status=answer.status, headers=answer.headers, parts=answer.parts, is_events=answer.is_events, release=close
    )


def _does_not_want(call: Call) -> bool:
    return call.tenant is not None and not call.tenant.entry.response_cache


def _group(call: Call) -> str:
    return "" if call.tenant is None else call.tenant.entry.id


def _shares(request: _Request) -> bool:
    """A call with a deadline makes its own answer: another's would end at that one's deadline."""
    wish = request.call.headers.get(names.HEADER_COALESCE, "").strip().lower()
    return request.saving.coalesce and wish != COALESCE_OFF and request.call.deadline_s is None


def _running_key(call: Call, key: bytes) -> bytes:
    """Requests that are not equally urgent do not wait for each other."""
    return key + call.priority.to_bytes(8, "little", signed=True)


def _must_not_be_kept(answer: Answer) -> bool:
    return "no-store" in answer.headers.get("Cache-Control", "").lower()


def _is_kept(header: str) -> bool:
    lower = header.lower()
    return lower not in _OF_ONE_CALL and not lower.startswith(names.INTERNAL_HEADER_PREFIX)


def _not_cached() -> ApiError:
    return ApiError(
        504,
        "Cache-Control: only-if-cached: no answer to this request is kept; send it without only-if-cached.",
        type="server_error",
        code="not_cached",
    )


async def _at_once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
