"""The layer that reads a call's prompt with the bundles of the workers that may answer it: layers behind it know its blocks and length."""

from collections.abc import Awaitable

import msgspec

from quire_contract.openai.requests import RoutingFields
from quire_router.answer import Answer, Source
from quire_router.call import Call, Outcome
from quire_router.picker import Picker
from quire_router.route_plan import Asker, sticky_key
from quire_router.session import session_key


class PromptLayer:
    """One for the process."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker

    def answer(self, call: Call, outcome: Outcome, inner: Source) -> Awaitable[Answer]:
        """The inner answer, to the call with its prompt read."""
        fields = call.fields
        if fields is None or call.prompt is not None:
            return inner(call, outcome)
        prompt = self._picker.read_at_once(
            call.targets[0],
            fields,
            len(call.body),
            cache_salt=call.cache_salt,
            session_key=session_key(call.headers, fields, _tenant(call)),
            split_key=self._split_key(call),
        )
        if prompt is None:
            return self._answer_later(call, fields, outcome, inner)
        return inner(msgspec.structs.replace(call, prompt=prompt), outcome)

    async def _answer_later(self, call: Call, fields: RoutingFields, outcome: Outcome, inner: Source) -> Answer:
        tenant = _tenant(call)
        prompt = await self._picker.read(
            call.targets[0],
            fields,
            len(call.body),
            cache_salt=call.cache_salt,
            tenant=tenant,
            session_key=session_key(call.headers, fields, tenant),
            split_key=self._split_key(call),
        )
        return await inner(msgspec.structs.replace(call, prompt=prompt), outcome)

    def _split_key(self, call: Call) -> bytes | None:
        sticky = self._picker.sticky(call.targets[0])
        if sticky == "none":
            return None
        tenant_id = None if call.tenant is None else call.tenant.entry.id
        asker = Asker(
            request_id=call.request_id, headers=call.headers, body=call.body, fields=call.fields, tenant_id=tenant_id
        )
        return sticky_key(sticky, asker)


def _tenant(call: Call) -> str:
    return "" if call.tenant is None else call.tenant.entry.id
