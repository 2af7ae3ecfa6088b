"""Follows one endpoint's KV events into the index: epochs, sequences, gaps, snapshots. No sockets: see `kv_subscriber`.

    in step     batch last + 1: apply        batch <= last: seen already        anything else: out of step
    out of step the index's entries no longer count (`endpoint.synced` is False); live batches are kept aside until a snapshot
                comes, which replaces all entries; then those after the snapshot's sequence are applied
    new epoch   the engine restarted: everything known of it is forgotten at once

It must not know HTTP, models or requests.
"""

from collections.abc import Sequence

from quire_contract.kv_events import MEDIUM_GPU, AllBlocksCleared, BlockRemoved, BlockStored, KVEvent, KVEventBatch
from quire_contract.load_report import LoadReport
from quire_router.endpoints import Endpoint
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.metrics import RouterMetrics

MAX_ASIDE = 4096
"""Batches kept while a snapshot is on its way; with more, the snapshot is asked for again."""


class KvFollower:
    """State of one endpoint's event stream. `wants_snapshot` tells the subscriber to ask for one."""

    def __init__(self, endpoint: Endpoint, index: KvIndex, sent: SentIndex, metrics: RouterMetrics) -> None:
        self._endpoint = endpoint
        self._index = index
        self._sent = sent
        self._metrics = metrics
        self._epoch: str | None = None
        self._last_seq: int | None = None
        self._aside: list[tuple[int, KVEventBatch]] = []
        self._gives_snapshots = True
        self._in_snapshot = False
        self.wants_snapshot = False

    @property
    def epoch(self) -> str | None:
        """The life of the engine that is followed."""
        return self._epoch

    def connected(self) -> None:
        """The event socket is connected: what was before cannot be trusted."""
        self._gives_snapshots = True
        self._lose_step()

    def disconnected(self) -> None:
        """The event socket is gone, perhaps with the engine: it gets no credit until it is heard again."""
        self._lose_step()
        self._forget()
        self._endpoint.forget_report()
        self.wants_snapshot = False
        self._in_snapshot = False  # the rest of one may still arrive by its own socket: of an engine that may be gone

    def take_batch(self, seq: int, batch: KVEventBatch) -> None:
        """A live batch."""
        self._note_epoch(batch.epoch)
        if self._in_snapshot:
            self._put_aside(seq, batch)
        elif seq == 0 and (self._last_seq is None or batch.epoch is None):
            self._begin(batch)
        elif self._last_seq is None:
            self._take_out_of_step(seq, batch)
        elif seq == self._last_seq + 1:
            self._apply(seq, batch)
        elif seq > self._last_seq or batch.epoch is None:  # without epochs, a smaller number can only be a restart
            self._metrics.kv_gaps.inc()
            self._lose_step()
            self._take_out_of_step(seq, batch)

    def take_report(self, report: LoadReport, now_s: float) -> None:
        """A load report: also tells of a new epoch, and of batches lost at the end of a burst."""
        self._note_epoch(report.epoch)
        self._endpoint.take_report(report, now_s)
        if self._in_snapshot:
            return
        if self._last_seq is None:
            self.wants_snapshot = True
        elif report.kv_seq > self._last_seq:
            self._metrics.kv_gaps.inc()
            self._lose_step()

    def begin_snapshot(self) -> None:
        """A snapshot is asked for; it will replace all entries. Live batches are kept aside until it is whole."""
        self.wants_snapshot = False
        self._in_snapshot = True
        self._index.clear(self._endpoint.id)

    def take_snapshot_part(self, batch: KVEventBatch) -> None:
        """One batch of the snapshot."""
        if self._in_snapshot and not self.wants_snapshot:
            self._apply_events(batch.events)

    def end_snapshot(self, seq: int, epoch: str | None) -> None:
        """The snapshot is whole and includes batches up to `seq`: go on with those kept aside.

        If step or the connection was lost meanwhile, the snapshot counts for nothing."""
        whole, self._in_snapshot = self._in_snapshot, False
        if self.wants_snapshot or not whole:
            return
        if self._epoch not in (None, epoch):
            self._endpoint.restarted()
        self._epoch = epoch
        self._last_seq = seq
        self._endpoint.synced = True
        self._metrics.kv_snapshots.inc()
        aside, self._aside = self._aside, []
        for number, batch in aside:
            if batch.epoch == epoch and number > seq:
                self.take_batch(number, batch)

    def end_without_snapshot(self) -> None:
        """The endpoint gives no snapshots (another vendor's engine): follow what comes from now on."""
        self._in_snapshot = False
        self._gives_snapshots = False
        aside, self._aside = self._aside, []
        for number, batch in aside:
            self.take_batch(number, batch)

    def abandon_snapshot(self) -> None:
        """It did not arrive, or not whole: ask again."""
        self._in_snapshot = False
        self._lose_step()

    def _begin(self, batch: KVEventBatch) -> None:
        """Batch 0: the engine has just started and holds nothing, so no snapshot is needed."""
        self._forget()
        self._aside.clear()
        self.wants_snapshot = False
        self._endpoint.synced = True
        self._apply(0, batch)

    def _take_out_of_step(self, seq: int, batch: KVEventBatch) -> None:
        if self._gives_snapshots:
            self._put_aside(seq, batch)
            return
        self.wants_snapshot = False
        self._endpoint.synced = True
        self._apply(seq, batch)

    def _apply(self, seq: int, batch: KVEventBatch) -> None:
        self._last_seq = seq
        self._metrics.kv_batches.inc()
        self._apply_events(batch.events)

    def _apply_events(self, events: Sequence[KVEvent]) -> None:
        index, endpoint_id = self._index, self._endpoint.id
        for event in events:
            match event:
                case BlockStored() if _counts(event):
                    index.add(endpoint_id, event.block_hashes)
                case BlockRemoved() if _counts(event):
                    index.remove(endpoint_id, event.block_hashes)
                case AllBlocksCleared():
                    self._forget()

    def _note_epoch(self, epoch: str | None) -> None:
        if epoch is None or epoch == self._epoch:
            return
        if self._epoch is not None:
            self._lose_step()
            self._forget()
            self._endpoint.restarted()
        self._epoch = epoch

    def _lose_step(self) -> None:
        self._last_seq = None
        self._aside.clear()
        self._endpoint.synced = False
        self.wants_snapshot = True

    def _put_aside(self, seq: int, batch: KVEventBatch) -> None:
        if len(self._aside) >= MAX_ASIDE:
            self._aside.clear()
            self.wants_snapshot = True
        self._aside.append((seq, batch))

    def _forget(self) -> None:
        self._index.clear(self._endpoint.id)
        self._sent.clear(self._endpoint.id)


def _counts(event: BlockStored | BlockRemoved) -> bool:
    """Only the device tier and the first group of layers (None: not told) make a prefix hit without a load."""
    return event.medium in (None, MEDIUM_GPU) and not event.group_idx
