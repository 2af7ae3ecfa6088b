"""The order in which waiting requests start: bands of priority, weighted fairness between flows in a band, first come first served in each.

    band    all tickets of one priority. The highest goes first; while lower ones wait, every LOWER_EVERY-th start is theirs, in turns, so
            that none starves: of k lower bands each starts one at least every k x LOWER_EVERY starts.
    flow    a tenant's tickets of one band. Each start moves its virtual time on by cost / weight, and the flow that is least far on goes
            next (start-time fair queueing, Goyal, Vin and Cheng, 1996): a tenant with a thousand tickets does not delay another's first.
    full    somebody else may have to make room: see `victim_for`.

Nothing here knows clocks, sockets or requests. Every operation is O(log n) in the number of flows, taken over many of them.
"""

import heapq
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, Literal, TypeVar

LOWER_EVERY = 20
"""Starts of the highest band in a row, one less than this, while lower ones wait."""
SPARE = 64
"""What has become useless may be so much, and twice as much as what is of use, before it is looked for."""

OwnerT = TypeVar("OwnerT")
Measure = Literal["tickets", "bytes"]


class Ticket(Generic[OwnerT]):
    """One waiting request. It may stand in several queues."""

    __slots__ = ("cost", "flow", "number", "owner", "priority", "size_bytes", "weight")

    def __init__(
        self,
        owner: OwnerT,
        *,
        number: int,
        priority: int = 0,
        flow: str = "",
        weight: int = 1,
        cost: float = 1.0,
        size_bytes: int = 0,
    ) -> None:
        """`number`: unique, in order of arrival. `cost`: of serving it, in tokens."""
        assert weight > 0 and cost > 0, "virtual time goes forward"
        self.owner = owner
        self.number = number
        self.priority = priority
        self.flow = flow
        self.weight = weight
        self.cost = cost
        self.size_bytes = size_bytes


class _Flow(Generic[OwnerT]):
    __slots__ = ("entry", "key", "size_bytes", "tag", "tickets", "weight")

    def __init__(self, key: str, tag: float) -> None:
        self.key = key
        self.tag = tag
        """Virtual time at which its first ticket is due."""
        self.weight = 1
        self.tickets: OrderedDict[int, Ticket[OwnerT]] = OrderedDict()
        self.size_bytes = 0
        self.entry: tuple[float, int, _Flow[OwnerT]] | None = None
        """The one entry of the heap that counts."""

    def share(self, measure: Measure, plus: Ticket[OwnerT] | None = None) -> float:
        """What of the queue it takes for its weight; with one ticket more if `plus` is given."""
        if measure == "tickets":
            return (len(self.tickets) + (plus is not None)) / self.weight
        return (self.size_bytes + (0 if plus is None else plus.size_bytes)) / self.weight


class _Greatest(Generic[OwnerT]):
    """Finds the flow that takes most by one measure. Each flow has one entry that counts, which never shows less than the flow takes."""

    __slots__ = ("_entries", "_heap", "_measure", "_num_entries")

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._entries: dict[str, tuple[float, int, _Flow[OwnerT]]] = {}
        self._heap: list[tuple[float, int, _Flow[OwnerT]]] = []
        self._num_entries = 0

    def note_growth(self, flow: _Flow[OwnerT]) -> None:
        heapq.heappush(self._heap, self._entry_of(flow))
        if len(self._heap) > 2 * len(self._entries) + SPARE:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def forget(self, flow: _Flow[OwnerT]) -> None:
        del self._entries[flow.key]

    def find(self) -> _Flow[OwnerT]:
        while True:
            entry = self._heap[0]
            flow = entry[2]
            if self._entries.get(flow.key) is not entry:
                heapq.heappop(self._heap)
            elif flow.share(self._measure) < -entry[0]:
                heapq.heapreplace(self._heap, self._entry_of(flow))
            else:
                return flow

    def _entry_of(self, flow: _Flow[OwnerT]) -> tuple[float, int, _Flow[OwnerT]]:
        self._num_entries += 1
        entry = self._entries[flow.key] = (-flow.share(self._measure), self._num_entries, flow)
        return entry


class _Band(Generic[OwnerT]):
    """All tickets of one priority. Exists while it has some."""

    __slots__ = ("_ahead", "_heap", "_max_ahead", "_num_entries", "_virtual", "flows", "greatest", "last_turn")

    def __init__(self, last_turn: int) -> None:
        self.flows: dict[str, _Flow[OwnerT]] = {}
        self.last_turn = last_turn
        """Number of the start that it had last, or of the one before which it began to wait."""
        self._heap: list[tuple[float, int, _Flow[OwnerT]]] = []
        self._num_entries = 0
        self._virtual = 0.0
        self._ahead: dict[str, float] = {}
        """Virtual time of flows without tickets: who comes back at once has not become younger."""
        self._max_ahead = SPARE
        self.greatest: dict[Measure, _Greatest[OwnerT]] = {"tickets": _Greatest("tickets"), "bytes": _Greatest("bytes")}

    def join(self, ticket: Ticket[OwnerT]) -> None:
        flow = self.flows.get(ticket.flow)
        if flow is None:
            tag = max(self._virtual, self._ahead.pop(ticket.flow, 0.0))
            flow = self.flows[ticket.flow] = _Flow(ticket.flow, tag)
            self._push(flow)
        flow.weight = ticket.weight
        flow.tickets[ticket.number] = ticket
        flow.size_bytes += ticket.size_bytes
        for greatest in self.greatest.values():
            greatest.note_growth(flow)

    def leave(self, ticket: Ticket[OwnerT]) -> None:
        flow = self.flows[ticket.flow]
        del flow.tickets[ticket.number]
        flow.size_bytes -= ticket.size_bytes
        if not flow.tickets:
            self._end(flow)

    def pop(self, can_start: Callable[[Ticket[OwnerT]], bool]) -> Ticket[OwnerT] | None:
        aside: list[_Flow[OwnerT]] = []
        found: Ticket[OwnerT] | None = None
        while self._heap and found is None:
            entry = heapq.heappop(self._heap)
            flow = entry[2]
            if flow.entry is not entry:
                continue
            first = next(iter(flow.tickets.values()))
            if can_start(first):
                found = first
                self._virtual = max(self._virtual, flow.tag)  # a flow that could not start has earned nothing by that
                flow.tag = self._virtual + first.cost / flow.weight
                self._push(flow)
                self.leave(first)
            else:
                aside.append(flow)
        for flow in aside:
            self._push(flow)
        return found

    def _push(self, flow: _Flow[OwnerT]) -> None:
        self._num_entries += 1
        flow.entry = (flow.tag, self._num_entries, flow)
        heapq.heappush(self._heap, flow.entry)
        if len(self._heap) > 2 * len(self.flows) + SPARE:
            self._heap = [entry for entry in self._heap if entry[2].entry is entry]
            heapq.heapify(self._heap)

    def _end(self, flow: _Flow[OwnerT]) -> None:
        del self.flows[flow.key]
        flow.entry = None
        for greatest in self.greatest.values():
            greatest.forget(flow)
        if flow.tag > self._virtual:
            self._ahead[flow.key] = flow.tag
        if len(self._ahead) > self._max_ahead:
            self._ahead = {key: tag for key, tag in self._ahead.items() if tag > self._virtual}
            self._max_ahead = 2 * len(self._ahead) + SPARE


class FairQueue(Generic[OwnerT]):
    """Tickets that wait for one thing."""

    def __init__(self) -> None:
        self._bands: dict[int, _Band[OwnerT]] = {}
        self._order: list[int] = []
        """Priorities with tickets, negated: the highest comes first."""
        self._num_starts = 0
        self._in_a_row = 0
        """Starts of the highest band since a lower one had its turn."""
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Ticket[OwnerT]]:
        """All tickets, in no order that means anything."""
        return (t for band in self._bands.values() for flow in band.flows.values() for t in flow.tickets.values())

    def join(self, ticket: Ticket[OwnerT]) -> None:
        """Wait from now on."""
        band = self._bands.get(ticket.priority)
        if band is None:
            band = self._bands[ticket.priority] = _Band(self._num_starts)
            insort(self._order, -ticket.priority)
        band.join(ticket)
        self._len += 1

    def leave(self, ticket: Ticket[OwnerT]) -> None:
        """Wait no longer. It must be there."""
        band = self._bands[ticket.priority]
        band.leave(ticket)
        self._left(ticket.priority, band)

    def pop(self, can_start: Callable[[Ticket[OwnerT]], bool]) -> Ticket[OwnerT] | None:
        """Take out the ticket that starts next, of those whose turn `can_start` allows. None: there is none.

        Only the first ticket of a flow may start: within a flow nobody overtakes."""
        for priority in self._turns():
            band = self._bands[priority]
            ticket = band.pop(can_start)
            if ticket is not None:
                self._note_start(priority, band)
                self._left(priority, band)
                return ticket
        return None

    def victim_for(self, ticket: Ticket[OwnerT], measure: Measure) -> Ticket[OwnerT] | None:
        """Who makes room for `ticket`, which has not joined yet, in a full queue. None: nobody.

        Always of the lowest band, and of it the newest ticket of the flow that takes most for its weight: of a lower band whoever it is; of
        `ticket`'s own band only if that flow takes more than `ticket`'s would with it."""
        if not self._order or -self._order[-1] > ticket.priority:
            return None
        lowest = -self._order[-1]
        flows = self._bands[lowest].flows
        greatest = self._bands[lowest].greatest[measure].find()
        if lowest == ticket.priority:
            own = flows.get(ticket.flow)
            mine = _Flow[OwnerT](ticket.flow, 0.0) if own is None else own
            mine.weight = ticket.weight
            if greatest is mine or greatest.share(measure) <= mine.share(measure, plus=ticket):
                return None
        return next(reversed(greatest.tickets.values()))

    def _turns(self) -> list[int]:
        """Priorities in the order in which they are asked now."""
        order = [-negated for negated in self._order]
        if len(order) > 1 and self._in_a_row >= LOWER_EVERY - 1:
            longest = min(order[1:], key=lambda priority: self._bands[priority].last_turn)
            order.remove(longest)
            order.insert(0, longest)
        return order

    def _note_start(self, priority: int, band: _Band[OwnerT]) -> None:
        self._num_starts += 1
        band.last_turn = self._num_starts
        is_highest = priority == -self._order[0]
        self._in_a_row = self._in_a_row + 1 if is_highest and len(self._order) > 1 else 0

    def _left(self, priority: int, band: _Band[OwnerT]) -> None:
        self._len -= 1
        if not band.flows:
            del self._bands[priority]
            self._order.remove(-priority)
