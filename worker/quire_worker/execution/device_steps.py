"""Steps on a GPU: rows resident there, inputs derived there, decode steps replayed as graphs. Nothing here waits for the device.

    changes    new rows, grown tables, sampling parameters     one upload, in steps that have any
    inputs     scheduled rows, where each one's tokens begin   one upload a step

What a step computes depends on the host only through these and through shapes, so steps of one shape are one recording: of all rows no
longer than the tables are wide, each with one token. A recording reads its row numbers where every upload of inputs puts them; rows of
padding are -1, and change nothing. Where every row takes the largest of its raw logits, a recording chooses and appends the tokens, too:
nothing is launched for sampling, and the logits are not kept.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from quire_kernels.ops import Ops
from quire_kernels.prepare_inputs import StepTensors
from quire_worker.execution.graphs import DecodeGraphs, Recording, Shape
from quire_worker.execution.prepared_step import NO_ROWS, Chosen, Computed, SampledRows
from quire_worker.execution.prompt_scores import WantedQueries, score
from quire_worker.execution.rows import DeviceRows, Ints
from quire_worker.execution.sampling_rows import SamplingRows
from quire_worker.execution.staging import ALIGNMENT, Array, Staging
from quire_worker.models.decoder import Decoder
from quire_worker.models.step_inputs import AttentionInputs, StepInputs
from quire_worker.plan import StepPlan

_CHANGES_BYTES = 1 << 16
_QUERIES_BYTES = 1 << 12
_PADDING = -1


class DeviceSteps:
    """See runner.Steps."""

    def __init__(
        self,
        *,
        model: Decoder,
        rows: DeviceRows,
        params: SamplingRows,
        ops: Ops,
        graphs: DecodeGraphs | None,
    ) -> None:
        """graphs: None: every step is launched operation by operation."""
        self._model = model
        self._rows = rows
        self._params = params
        self._ops = ops
        self._graphs = graphs
        most = max(rows.state.num_computed.shape[0], 0 if graphs is None else graphs.sizes[-1])
        self._changes = Staging(rows.device, _CHANGES_BYTES)
        # Four arrays of 8 bytes a row at most; it must not grow, as recordings know its address.
        self._inputs = Staging(rows.device, 4 * (8 * (most + 1) + ALIGNMENT))
        self._queries = Staging(rows.device, _QUERIES_BYTES)
        self._every = torch.arange(most + 1, dtype=torch.int32, device=rows.device)
        self._logits: Tensor | None = None
        # Outside the recordings' memory, as the logits are.
        self._chosen = Chosen(
            token_ids=torch.zeros(most, dtype=torch.int64, device=rows.device),
            broken=torch.zeros(most, dtype=torch.bool, device=rows.device),
        )

    def run(self, plan: StepPlan) -> Computed:
        """See runner.Steps."""
        self._send_changes(plan)
        if not plan.rows:
            return Computed(logits=None, sampled=NO_ROWS)
        row_ids = np.array(plan.rows, np.int64)
        counts = np.array(plan.num_tokens, np.int64)
        starts = self._rows.host_num_computed[row_ids]
        seq_lens = starts + counts
        is_sampled = seq_lens == self._rows.host_num_tokens[row_ids]
        self._rows.host_num_computed[row_ids] = seq_lens
        num_blocks = -(-int(seq_lens.max()) // self._rows.block_size)
        if is_sampled.all() and counts.max() == 1:
            is_plain = not plan.has_masks and self._params.are_plain(row_ids, self._rows.host_num_tokens[row_ids])
            return self._decode(row_ids, num_blocks, is_plain=is_plain)
        queries = self._params.scorer.wanted(row_ids, starts, counts, is_sampled)
        return self._mixed(row_ids, counts, is_sampled, num_blocks, queries)

    def prepare(self, *, is_smallest: bool = False) -> int:
        """See runner.Steps."""
        if self._graphs is None:
            return 0
        shapes = self._graphs.all_shapes
        self._recording(self._graphs, shapes[0] if is_smallest else shapes[-1])
        return 2 * len(shapes) - 1

    def forget(self) -> None:
        """See dormancy.Steps."""
        self._logits = None
        if self._graphs is not None:
            self._graphs.forget()

    def _send_changes(self, plan: StepPlan) -> None:
        changes = self._rows.changes(plan)
        if not changes:
            return
        num_changes = len(changes)
        if plan.new_rows:
            changes += self._params.changes(plan.new_rows)
        on_device = self._changes.send(changes)
        self._rows.accept(on_device[:num_changes])
        if plan.new_rows:
            self._params.accept(on_device[num_changes:])

    def _decode(self, row_ids: Ints, num_blocks: int, *, is_plain: bool) -> Computed:
        """One token in every row, each of which is sampled; is_plain: as the largest of its logits."""
        num_rows = len(row_ids)
        graphs = self._graphs
        shape = None if graphs is None else graphs.shape_for(num_rows, num_blocks)
        recording = None if graphs is None or shape is None else self._recording(graphs, shape, chooses=is_plain)
        if recording is None or shape is None:
            (on_device,) = self._inputs.send([row_ids])
            logits = self._model(self._decode_inputs(on_device, num_blocks))
            return Computed(logits=logits, sampled=SampledRows(rows=row_ids, rows_on_device=on_device))
        padded = np.full(shape[0], _PADDING, np.int64)
        padded[:num_rows] = row_ids
        (on_device,) = self._inputs.send([padded])
        recording.replay()
        sampled = SampledRows(rows=row_ids, rows_on_device=on_device[:num_rows])
        if is_plain:
            chosen = self._chosen_of(num_rows)
            if self._rows.device.type == "cpu":
                # Copies to the host begin when the handle is filled, but from a CPU there are none, and the next step writes here.
                chosen = Chosen(token_ids=chosen.token_ids.clone(), broken=chosen.broken.clone())
            return Computed(logits=None, sampled=sampled, chosen=chosen)
        assert self._logits is not None
        return Computed(logits=self._logits[:num_rows], sampled=sampled)

    def _recording(self, graphs: DecodeGraphs, shape: Shape, *, chooses: bool = False) -> Recording | None:
        found = graphs.find(shape, chooses=chooses)
        if found is None and graphs.is_recording:
            self._inputs.send([np.full(shape[0], _PADDING, np.int64)])
            found = graphs.record(shape, partial(self._run_shape, graphs, shape, chooses=chooses), chooses=chooses)
        return found

    def _chosen_of(self, num_rows: int) -> Chosen:
        return Chosen(token_ids=self._chosen.token_ids[:num_rows], broken=self._chosen.broken[:num_rows])

    def _run_shape(self, graphs: DecodeGraphs, shape: Shape, *, chooses: bool) -> None:
        """What is recorded: the rows whose numbers lie where inputs are sent, into the shared logits, or tokens and rows."""
        num_rows, num_blocks = shape
        row_ids = self._inputs.first(num_rows, torch.int64)
        logits = self._model(self._decode_inputs(row_ids, num_blocks))
        assert logits is not None
        if chooses:
            chosen = self._chosen_of(num_rows)
            chosen.token_ids.copy_(self._ops.argmax(logits, broken=chosen.broken))
            self._rows.append_on_device(row_ids, chosen.token_ids)
            return
        if self._logits is None:
            # Outside the recordings' memory, which the next recording may use.
            self._logits = logits.new_empty(graphs.sizes[-1], logits.shape[1])
        self._logits[:num_rows].copy_(logits)

    def _decode_inputs(self, row_ids: Tensor, num_blocks: int) -> StepInputs:
        num_rows = row_ids.shape[0]
        query_starts = self._every[: num_rows + 1]
        found = self._prepare(row_ids, query_starts, num_tokens=num_rows, num_blocks=num_blocks)
        attention = AttentionInputs(
            block_tables=found.block_tables.unbind(),
            query_starts=query_starts,
            seq_lens=found.seq_lens,
            max_query_len=1,
            max_seq_len=num_blocks * self._rows.block_size,
        )
        return StepInputs(
            token_ids=found.token_ids,
            positions=found.positions,
            slots=found.slots.unbind(),
            attention=attention,
            sampled_tokens=None,
            sampled_attention=attention,
            num_sampled=num_rows,
        )

    def _mixed(
        self,
        row_ids: Ints,
        counts: Ints,
        is_sampled: np.ndarray[tuple[int], np.dtype[np.bool_]],
        num_blocks: int,
        queries: WantedQueries | None,
    ) -> Computed:
        """Any number of tokens in each row."""
        starts = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        picked = np.flatnonzero(is_sampled)
        last = starts[1:][picked].astype(np.int64) - 1
        rows_on_device, picked_on_device, last_on_device, starts_on_device = self._inputs.send(
            [row_ids, picked, last, starts]
        )
        num_tokens = int(starts[-1])
        found = self._prepare(rows_on_device, starts_on_device, num_tokens=num_tokens, num_blocks=num_blocks)
        max_seq_len = num_blocks * self._rows.block_size
        attention = AttentionInputs(
            block_tables=found.block_tables.unbind(),
            query_starts=starts_on_device,
            seq_lens=found.seq_lens,
            max_query_len=int(counts.max()),
            max_seq_len=max_seq_len,
        )
        # One query, the last, of each sampled row.
        every = self._every[: len(picked) + 1]
        inputs = StepInputs(
            token_ids=found.token_ids,
            positions=found.positions,
            slots=found.slots.unbind(),
            attention=attention,
            sampled_tokens=last_on_device,
            sampled_attention=_attention_of(found, picked_on_device, every, max_seq_len),
            num_sampled=len(picked),
        )
        sampled = SampledRows(rows=row_ids[picked], rows_on_device=rows_on_device.index_select(0, picked_on_device))
        if queries is not None:
            return self._score(inputs, found, sampled, queries)
        return Computed(logits=self._model(inputs), sampled=sampled)

    def _score(self, inputs: StepInputs, found: StepTensors, sampled: SampledRows, queries: WantedQueries) -> Computed:
        """The step with more queries in the last layer, and what they are for."""
        arrays: list[Array] = [queries.picked, queries.starts, queries.tokens, queries.sampled, queries.scored]
        picked, starts, tokens, places, scored, rows, positions = self._queries.send(
            [*arrays, queries.target_rows, queries.target_positions]
        )
        width = int(np.diff(queries.starts).max())
        max_seq_len = inputs.attention.max_seq_len
        hidden = self._model.hidden(
            replace(
                inputs,
                sampled_tokens=tokens,
                sampled_attention=_attention_of(found, picked, starts, max_seq_len, max_query_len=width),
                num_sampled=len(queries.tokens),
            )
        )
        assert hidden is not None
        targets = self._rows.token_ids[rows, positions].to(torch.int64)
        scores = score(self._model, self._ops, hidden, scored, targets, queries.spans, self._params.vocab_size)
        logits = self._model.logits(hidden.index_select(0, places)) if len(queries.sampled) else None
        return Computed(logits=logits, sampled=sampled, scores=scores)

    def _prepare(self, row_ids: Tensor, query_starts: Tensor, *, num_tokens: int, num_blocks: int) -> StepTensors:
        return self._ops.prepare_inputs(
            row_ids, query_starts, self._rows.state, num_tokens=num_tokens, num_blocks=num_blocks
        )


def _attention_of(
    found: StepTensors, rows: Tensor, query_starts: Tensor, max_seq_len: int, *, max_query_len: int = 1
) -> AttentionInputs:
    """For the last queries of some of the step's rows [Q]; query_starts [Q + 1]."""
    return AttentionInputs(
        block_tables=found.block_tables.index_select(1, rows).unbind(),
        query_starts=query_starts,
        seq_lens=found.seq_lens.index_select(0, rows),
        max_query_len=max_query_len,
        max_seq_len=max_seq_len,
    )
