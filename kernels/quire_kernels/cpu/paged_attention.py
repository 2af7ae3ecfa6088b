"""CPU path of paged attention. See quire_kernels.paged_attention for the table.

Decode rows (one query) are cut into pieces of 64 keys (whole blocks), at fixed positions; the pieces of all rows go through batched
products together, in slabs that stay in the processor's cache. Rows with several queries go through torch's
scaled_dot_product_attention: short prompts batched by padded length, others one by one.

    row 0  |piece|piece|pie..|                pieces   [P]  row 0, 0, 0, 1, 2, 2, ..
    row 1  |p....|                            scores   [P * Hkv, G, 64]
    row 2  |piece|pi...|                      partial  [P * Hkv, G, D], summed into rows in order of pieces

Keys of all kv heads are gathered as chunks: the B * D contiguous numbers of one head in one block, so a gathered piece needs no
transposition. Batched products treat each piece alike whatever the others are, so a row's bits do not depend on its company (tested),
though they do depend on whether it came as a decode or a prefill row.

The cache must hold finite numbers everywhere (allocate it with zeros): stale slots meet a weight of exactly 0.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE_LEN = 64
"""Keys of one piece, where the block size divides it; else one block."""
SLAB_PIECES = 64
"""Pieces that are gathered and multiplied at once: 4,096 keys, 2 MiB at 4 kv heads of 64 in bfloat16."""
BATCHED_PROMPT_LEN = 256
"""Prompts up to it are batched with others of the same padded length."""
PROMPT_PAD = 16
QUERY_TILE = 256
"""Queries that share one mask, where a row needs a mask."""


@dataclass(frozen=True, kw_only=True)
class DecodePieces:
    """Rows with one query."""

    tokens: Tensor | None
    """[Rd] int64 index of each row's query in q; None when q begins with exactly these rows."""
    num_rows: int
    rows: Tensor
    """[P] int64 row of each piece, ascending; num_rows for padding pieces."""
    query_rows: Tensor
    """[P] int64 likewise, 0 for padding pieces."""
    chunks: Tensor
    """[P, Hkv * blocks per piece] int64 chunks to gather."""
    hidden: Tensor
    """[P, 1, piece] bool: keys outside the row or its window."""
    scratch: Tensor
    """[chunks of a slab, B * D]: gathered keys or values. Fresh memory for each layer would cost more than the gathering."""


@dataclass(frozen=True, kw_only=True)
class PromptGroup:
    """Rows, or a tile of one row, with several queries."""

    tokens: Tensor | slice
    """[rows * queries] int64 index into q, padding included; a slice for a single row."""
    kept: Tensor | None
    """[rows * queries] bool, False for padding; None without padding."""
    num_rows: int
    chunks: Tensor
    """[rows * Hkv * blocks] int64 chunks to gather."""
    first_key: int
    num_keys: int
    """Keys used are first_key .. first_key + num_keys - 1 of the gathered ones."""
    hidden: Tensor | None
    """[queries, num_keys] bool; None for a causal mask from the top left corner."""


@dataclass(frozen=True, kw_only=True)
class CpuAttentionPlan:
    """Indices of one step, the same for every layer of one window."""

    decode: DecodePieces | None
    prompts: tuple[PromptGroup, ...]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where chunks lie, counted from a layer's first one."""

    num_kv_heads: int
    block_size: int
    chunks_per_block: int

    def chunks_of(self, blocks: Tensor) -> Tensor:
        """[..., n] block ids to [..., Hkv, n] chunks."""
        heads = torch.arange(self.num_kv_heads)[:, None]
        return blocks.long()[..., None, :] * self.chunks_per_block + heads


def plan_attention_cpu(
    k_cache: Tensor, block_tables: Tensor, query_starts: Tensor, seq_lens: Tensor, *, window: int | None
) -> CpuAttentionPlan:
    """Indices for `paged_attention_cpu`; any layer's k_cache serves, for its strides."""
    layout = _layout_of(k_cache)
    query_lens = query_starts[1:] - query_starts[:-1]
    rows = ((query_lens == 1) & (seq_lens > 0)).nonzero().squeeze(-1)
    decode = None
    if rows.numel():
        num_tokens = int(query_starts[-1])
        tokens = None if rows.numel() == num_tokens else query_starts[rows].long()
        decode = _plan_decode(layout, block_tables[rows], seq_lens[rows].long(), tokens, window)
        gathered = min(SLAB_PIECES, decode.rows.numel()) * decode.chunks.shape[1]
        decode = replace(decode, scratch=k_cache.new_empty(gathered, k_cache.shape[2] * k_cache.shape[3]))
    prompts = _plan_prompts(layout, block_tables, query_starts.tolist(), seq_lens.tolist(), window)
    return CpuAttentionPlan(decode=decode, prompts=tuple(prompts))


def paged_attention_cpu(
    q_THD: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_starts: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    window: int | None,
    max_query_len: int,
    max_seq_len: int,
    plan: object = None,
    out: Tensor | None = None,
) -> Tensor:
    """See the module's docstring; `plan` comes from `plan_attention_cpu` with the same window."""
    if plan is None:
        plan = plan_attention_cpu(k_cache, block_tables, query_starts, seq_lens, window=window)
    assert isinstance(plan, CpuAttentionPlan)
    out = torch.empty(q_THD.shape, dtype=q_THD.dtype) if out is None else out
    k_chunks, v_chunks = _chunks_view(k_cache), _chunks_view(v_cache)
    if plan.decode is not None:
        num_rows, tokens = plan.decode.num_rows, plan.decode.tokens
        q_rows = q_THD[:num_rows] if tokens is None else q_THD.index_select(0, tokens)
        attended = _attend_decode(q_rows, k_chunks, v_chunks, plan.decode, k_cache.shape[1], scale)
        if tokens is None:
            out[:num_rows] = attended
        else:
            out.index_copy_(0, tokens, attended)
    for group in plan.prompts:
        _attend_prompts(q_THD, k_chunks, v_chunks, group, k_cache.shape[1], scale, out)
    return out


def _layout_of(cache: Tensor) -> _Layout:
    _, num_kv_heads, block_size, head_dim = cache.shape
    chunk = block_size * head_dim
    assert cache.stride()[1:] == (chunk, head_dim, 1), "a block's heads must be contiguous runs"
    assert cache.stride(0) % chunk == 0, "blocks must be a whole number of chunks apart"
    return _Layout(num_kv_heads=num_kv_heads, block_size=block_size, chunks_per_block=cache.stride(0) // chunk)


def _chunks_view(cache: Tensor) -> Tensor:
    """[chunks, B * D]: every chunk from this layer's first to its last, those of other layers included."""
    num_blocks, num_kv_heads, block_size, head_dim = cache.shape
    chunk = block_size * head_dim
    num_chunks = (num_blocks - 1) * (cache.stride(0) // chunk) + num_kv_heads
    return cache.as_strided((num_chunks, chunk), (chunk, 1))


def _plan_decode(
    layout: _Layout, tables: Tensor, seq_lens: Tensor, tokens: Tensor | None, window: int | None
) -> DecodePieces:
    num_rows, block_size = tables.shape[0], layout.block_size
    blocks_per_piece = max(1, PIECE_LEN // block_size)
    piece_len = blocks_per_piece * block_size
    first_keys = torch.zeros_like(seq_lens) if window is None else (seq_lens - window).clamp_(min=0)
    first_pieces = first_keys // piece_len
    counts = (seq_lens - 1) // piece_len + 1 - first_pieces
    rows = torch.repeat_interleave(counts)
    num_pieces = rows.numel()
    pieces = torch.arange(num_pieces) + (first_pieces - counts.cumsum(0) + counts)[rows]
    starts, ends = first_keys[rows][:, None], seq_lens[rows][:, None]
    blocks = pieces[:, None] * blocks_per_piece + torch.arange(blocks_per_piece)
    is_used = (blocks * block_size < ends) & ((blocks + 1) * block_size > starts)
    block_ids = tables[rows[:, None], blocks.clamp(max=tables.shape[1] - 1)]
    chunks = layout.chunks_of(torch.where(is_used, block_ids, 0)).flatten(1)
    keys = pieces[:, None] * piece_len + torch.arange(piece_len)
    hidden = ((keys < starts) | (keys >= ends))[:, None]
    padding = _padded_pieces(num_pieces) - num_pieces
    return DecodePieces(
        tokens=tokens,
        num_rows=num_rows,
        rows=F.pad(rows, (0, padding), value=num_rows),
        query_rows=F.pad(rows, (0, padding)),
        chunks=F.pad(chunks, (0, 0, 0, padding)),
        hidden=F.pad(hidden, (0, 0, 0, 0, 0, padding)),
        scratch=torch.empty(0),
    )


def _padded_pieces(num_pieces: int) -> int:
    """A multiple of 8 past 8: matrix libraries prepare each new shape anew, which costs half a millisecond."""
    return num_pieces if num_pieces <= 8 else -(-num_pieces // 8) * 8


def _attend_decode(
    q_RHD: Tensor, k_chunks: Tensor, v_chunks: Tensor, plan: DecodePieces, num_kv_heads: int, scale: float
) -> Tensor:
    num_heads, head_dim = q_RHD.shape[1:]
    num_pieces, piece_len = plan.rows.numel(), plan.hidden.shape[-1]
    group_size = num_heads // num_kv_heads
    slabs = [slice(i, i + SLAB_PIECES) for i in range(0, num_pieces, SLAB_PIECES)]

    q_PHD = q_RHD.index_select(0, plan.query_rows)
    scores_PHS = torch.empty(num_pieces, num_heads, piece_len)
    for slab in slabs:
        k = _gather(k_chunks, plan, slab).view(-1, piece_len, head_dim)
        q, scores = q_PHD[slab].reshape(-1, group_size, head_dim), scores_PHS[slab].view(-1, group_size, piece_len)
        _scaled_products(q, k.transpose(1, 2), scale, out=scores)
    weights_PHS, totals_RH = _softmax_over_rows(scores_PHS, plan)

    summed = torch.zeros(plan.num_rows + 1, num_heads * head_dim)
    weights_PHS = weights_PHS.to(v_chunks.dtype)
    for slab in slabs:
        v = _gather(v_chunks, plan, slab).view(-1, piece_len, head_dim)
        partial = torch.bmm(weights_PHS[slab].view(-1, group_size, piece_len), v)
        summed.index_add_(0, plan.rows[slab], partial.view(-1, num_heads * head_dim).float())
    attended_RHD = summed[: plan.num_rows].view(-1, num_heads, head_dim) / totals_RH[..., None]
    return attended_RHD.to(q_RHD.dtype)


def _gather(chunks: Tensor, plan: DecodePieces, slab: slice) -> Tensor:
    index = plan.chunks[slab].flatten()
    return torch.index_select(chunks, 0, index, out=plan.scratch[: index.numel()])


def _scaled_products(q: Tensor, k_transposed: Tensor, scale: float, *, out: Tensor) -> None:
    """out = scale * q @ k, in float32.

    A product of bfloat16 is rounded to it, which is too coarse for scores. A second product, minus the first one, is rounded
    to the error's own magnitude; their sum is right to about 2**-16, at half the price of float32.
    """
    if q.dtype == torch.float16:
        q, k_transposed = q.float(), k_transposed.float()
    if q.dtype == torch.float32:
        torch.baddbmm(out, q, k_transposed, beta=0, alpha=scale, out=out)
        return
    rounded = torch.baddbmm(q.new_empty(()), q, k_transposed, beta=0, alpha=scale)
    out.copy_(rounded).add_(rounded.baddbmm_(q, k_transposed, beta=-1, alpha=scale))


def _softmax_over_rows(scores_PHS: Tensor, plan: DecodePieces) -> tuple[Tensor, Tensor]:
    """Weights of each piece, relative to its row's largest score, and their totals [rows, H]. Scores are overwritten."""
    scores_PHS.masked_fill_(plan.hidden, float("-inf"))
    largest_PH = scores_PHS.amax(-1)
    num_pieces, num_heads = largest_PH.shape
    index = plan.rows[:, None].expand(num_pieces, num_heads)
    largest_RH = torch.full((plan.num_rows + 1, num_heads), float("-inf"))
    largest_RH.scatter_reduce_(0, index, largest_PH, "amax")
    weights = scores_PHS.sub_(largest_RH.index_select(0, plan.rows)[..., None]).exp_()
    totals = torch.zeros_like(largest_RH).index_add_(0, plan.rows, weights.sum(-1))
    return weights, totals[: plan.num_rows]


def _plan_prompts(
    layout: _Layout, tables: Tensor, query_starts: list[int], seq_lens: list[int], window: int | None
) -> list[PromptGroup]:
    groups: list[PromptGroup] = []
    batches: dict[int, list[int]] = {}
    for row, seq_len in enumerate(seq_lens):
        start, end = query_starts[row], query_starts[row + 1]
        if end - start <= 1 or seq_len == 0:
            continue
        is_causal = end - start == seq_len and (window is None or seq_len <= window)
        if not is_causal:
            groups += _tiles_of_row(layout, tables[row], slice(start, end), seq_len, window)
        elif seq_len <= BATCHED_PROMPT_LEN:
            batches.setdefault(-(-seq_len // PROMPT_PAD) * PROMPT_PAD, []).append(row)
        else:
            groups.append(_whole_prompt(layout, tables[row], slice(start, end)))
    for padded_len, rows in batches.items():
        starts = torch.tensor([query_starts[row] for row in rows])
        lens = torch.tensor([seq_lens[row] for row in rows])
        groups.append(_padded_prompts(layout, tables[rows], starts, lens, padded_len))
    return groups


def _whole_prompt(layout: _Layout, table: Tensor, tokens: slice) -> PromptGroup:
    seq_len = tokens.stop - tokens.start
    return PromptGroup(
        tokens=tokens,
        kept=None,
        num_rows=1,
        chunks=layout.chunks_of(table[: -(-seq_len // layout.block_size)]).flatten(),
        first_key=0,
        num_keys=seq_len,
        hidden=None,
    )


def _padded_prompts(layout: _Layout, tables: Tensor, starts: Tensor, lens: Tensor, padded_len: int) -> PromptGroup:
    """Padding queries repeat the row's first token; padding keys come after all queries that matter."""
    steps = torch.arange(padded_len)
    kept = steps < lens[:, None]
    tokens = starts[:, None] + torch.where(kept, steps, 0)
    blocks = torch.arange(-(-padded_len // layout.block_size))
    is_used = blocks * layout.block_size < lens[:, None]
    block_ids = tables[:, blocks.clamp(max=tables.shape[1] - 1)]
    return PromptGroup(
        tokens=tokens.flatten(),
        kept=None if bool(kept.all()) else kept.flatten(),
        num_rows=len(starts),
        chunks=layout.chunks_of(torch.where(is_used, block_ids, 0)).flatten(),
        first_key=0,
        num_keys=padded_len,
        hidden=None,
    )


def _tiles_of_row(layout: _Layout, table: Tensor, tokens: slice, seq_len: int, window: int | None) -> list[PromptGroup]:
    """A row with a past, or longer than the window: tiles of queries, each with the keys that it can see."""
    groups = []
    past = seq_len - (tokens.stop - tokens.start)
    for start in range(tokens.start, tokens.stop, QUERY_TILE):
        end = min(start + QUERY_TILE, tokens.stop)
        positions = torch.arange(start, end) - tokens.start + past
        first, last = int(positions[0]), int(positions[-1])
        first_key = 0 if window is None else max(0, first - window + 1)
        first_block = first_key // layout.block_size
        distance = positions[:, None] - torch.arange(first_key, last + 1)
        groups.append(
            PromptGroup(
                tokens=slice(start, end),
                kept=None,
                num_rows=1,
                chunks=layout.chunks_of(table[first_block : last // layout.block_size + 1]).flatten(),
                first_key=first_key - first_block * layout.block_size,
                num_keys=last + 1 - first_key,
                hidden=(distance < 0) if window is None else (distance < 0) | (distance >= window),
            )
        )
    return groups


def _attend_prompts(
    q_THD: Tensor, k_chunks: Tensor, v_chunks: Tensor, group: PromptGroup, num_kv_heads: int, scale: float, out: Tensor
) -> None:
    num_heads, head_dim = q_THD.shape[1:]
    group_size = num_heads // num_kv_heads
    q = q_THD[group.tokens].view(group.num_rows, -1, num_kv_heads, group_size, head_dim)
    num_queries = q.shape[1]
    # A batch entry is one kv head of one row, its heads are the query heads of the group: keys are shared, not repeated.
    q = q.permute(0, 2, 3, 1, 4).reshape(group.num_rows * num_kv_heads, group_size, num_queries, head_dim)
    keys = slice(group.first_key, group.first_key + group.num_keys)
    k, v = (
        chunks.index_select(0, group.chunks)
        .view(q.shape[0], 1, -1, head_dim)[:, :, keys]
        .expand(-1, group_size, -1, -1)
        for chunks in (k_chunks, v_chunks)
    )
    mask = None
    if group.hidden is not None:
        mask = torch.zeros(group.hidden.shape, dtype=q.dtype).masked_fill_(group.hidden, float("-inf"))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    attended = attended.view(group.num_rows, num_kv_heads, group_size, num_queries, head_dim).permute(0, 3, 1, 2, 4)
    attended = attended.reshape(-1, num_heads, head_dim)
    if group.kept is not None and isinstance(group.tokens, Tensor):
        out.index_copy_(0, group.tokens[group.kept], attended[group.kept])
    else:
        out[group.tokens] = attended
