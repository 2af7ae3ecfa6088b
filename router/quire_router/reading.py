"""The layer that reads a call's prompt with the bundles of the workers that may answer it: layers behind it know its blocks and length."""

import msgspec

from quire_router.answer import Answer, Source
from quire_router.call import Call, Outcome
from quire_router.picker import Picker
from quire_router.route_plan import Asker, sticky_key
from quire_router.session import session_key


class PromptLayer:
    """One for the process."""

    def __init__(self, picker: Picker) -> None:
        self._picker = picker

    async def answer(self, call: Call, outcome: Outcome, inner: Source) -> Answer:
        """The inner answer, to the call with its prompt read."""
        if call.fields is None or call.prompt is not None:
            return await inner(call, outcome)
        tenant = "" if call.tenant is None else call.tenant.entry.id
        prompt = await self._picker.read(
            call.targets[0],
            call.fields,
            len(call.body),
            cache_salt=call.cache_salt,
            tenant=tenant,
            session_key=session_key(call.headers, call.fields, tenant),
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
