"""What may enter the queue: a request becomes choices, or is rejected with a reason a client can act on.

Knows limits and requests; not blocks or the state of the batch.
"""

from dataclasses import dataclass

import msgspec

from quire_contract.block_hash import ExtraKeys
from quire_worker.kv.block_manager import BlockManager
from quire_worker.request import MAX_LOGPROB_TOKEN_IDS, Submit
from quire_worker.scheduling.choice import Choice
from quire_worker.scheduling.limits import SchedulerLimits

_SEED_MODULUS = 2**64


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request was not taken; the values of messages.Rejected."""

    reason: str
    """"queue_full" | "too_long" | "invalid" | "grammar"."""
    message: str


@dataclass(frozen=True, slots=True)
class QueueState:
    """How full the queue is."""

    num_choices: int
    num_tokens: int
    num_free_rows: int


def rejection_of(submit: Submit, limits: SchedulerLimits, queue: QueueState) -> Rejection | None:
    """Why `submit` cannot be taken now; None if it can."""
    return _malformed(submit, limits) or _too_long(submit, limits) or _queue_full(submit, limits, queue)


def choices_of(
    submit: Submit, arrival: int, arrived_s: float, limits: SchedulerLimits, kv: BlockManager
) -> list[Choice]:
    """The request's choices, oldest first, hashed as far as its full blocks go."""
    prompt, sampling = submit.prompt_token_ids, submit.sampling
    max_total = min(len(prompt) + sampling.max_tokens, limits.max_model_len)
    tokens = prompt + submit.output_token_ids
    chain = kv.new_chain(ExtraKeys(adapter=submit.adapter, cache_salt=submit.cache_salt), tokens)
    choices = []
    origin = submit.origin or submit.request_id
    for index in range(submit.n):
        own = msgspec.structs.replace(
            sampling,
            seed=(sampling.seed + index) % _SEED_MODULUS,
            # The prompt is the same for all: the first choice computes it.
            prompt_logprobs=sampling.prompt_logprobs if index == 0 else None,
        )
        age = (arrival, index)
        choices.append(
            Choice(submit.request_id, age, tokens.copy(), own, chain.copy(), max_total, arrived_s, len(prompt))
        )
        choices[-1].origin = origin
        choices[-1].is_streamed = submit.is_streamed
    return choices


def num_tokens_of(submit: Submit) -> int:
    """Tokens that its choices bring."""
    return (len(submit.prompt_token_ids) + len(submit.output_token_ids)) * submit.n


def _malformed(submit: Submit, limits: SchedulerLimits) -> Rejection | None:
    prompt, sampling = submit.prompt_token_ids, submit.sampling
    if not prompt:
        return Rejection("invalid", "prompt: needs at least one token")
    if min(prompt) < 0 or max(prompt) >= limits.vocab_size:
        return Rejection("invalid", f"prompt: token ids must lie in [0, {limits.vocab_size})")
    if not _are_ids(limits.vocab_size, sampling.allowed_token_ids, sampling.logprob_token_ids, *sampling.bad_words):
        return Rejection(
            "invalid",
            f"allowed_token_ids, bad_words, logprob_token_ids: token ids must lie in [0, {limits.vocab_size})",
        )
    if not all(sampling.bad_words) or len(sampling.logprob_token_ids) > MAX_LOGPROB_TOKEN_IDS:
        return Rejection(
            "invalid", f"bad_words: none may be empty; logprob_token_ids: at most {MAX_LOGPROB_TOKEN_IDS} are allowed"
        )
    if sampling.max_tokens < 1:
        return Rejection("invalid", f"max_tokens: must be at least 1, got {sampling.max_tokens}")
    if submit.output_token_ids:
        return _malformed_output(submit, limits)
    most = limits.max_num_seqs + limits.max_num_queued_reqs
    if not 1 <= submit.n <= most:
        return Rejection("invalid", f"n: must be between 1 and {most} (rows and queue together), got {submit.n}")
    return None


def _malformed_output(submit: Submit, limits: SchedulerLimits) -> Rejection | None:
    output = submit.output_token_ids
    if not _are_ids(limits.vocab_size, tuple(output)):
        return Rejection("invalid", f"output: token ids must lie in [0, {limits.vocab_size})")
    room = min(submit.sampling.max_tokens, limits.max_model_len - len(submit.prompt_token_ids))
    if len(output) > room:
        return Rejection("invalid", f"output: has {len(output)} tokens, but the choice may have {room}")
    if submit.n != 1:
        return Rejection("invalid", f"n: a choice that was begun elsewhere goes on alone, got {submit.n}")
    return None


def _are_ids(vocab_size: int, *lists: tuple[int, ...]) -> bool:
    """Whether all are token ids: the runner looks them up without asking."""
    return all(min(ids) >= 0 and max(ids) < vocab_size for ids in lists if ids)


def _too_long(submit: Submit, limits: SchedulerLimits) -> Rejection | None:
    num_prompt = len(submit.prompt_token_ids)
    if num_prompt < limits.max_model_len:
        return None
    return Rejection(
        "too_long",
        f"prompt: has {num_prompt} tokens, but at most {limits.max_model_len - 1} leave room for one output token "
        f"(the model's length is {limits.max_model_len})",
    )


def _queue_full(submit: Submit, limits: SchedulerLimits, queue: QueueState) -> Rejection | None:
    most = limits.max_num_queued_reqs + queue.num_free_rows
    if queue.num_choices + submit.n > most:
        return Rejection("queue_full", f"{queue.num_choices} choices are waiting, at most {most} may; try again later")
    num_tokens = num_tokens_of(submit)
    if queue.num_choices and queue.num_tokens + num_tokens > limits.max_num_queued_tokens:
        return Rejection(
            "queue_full",
            f"{queue.num_tokens} prompt tokens are waiting, at most {limits.max_num_queued_tokens} may; try again later",
        )
    return None
