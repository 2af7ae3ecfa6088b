"""CPU path of top_logprobs: a partial sort. See quire_kernels.logprobs for the table."""

from torch import Tensor

from quire_kernels.logprobs import TopLogprobs, largest_by_value_then_id, logprobs_of


def top_logprobs_cpu(logits_RV: Tensor, chosen: Tensor, k: int) -> TopLogprobs:
    """As the reference, with torch.topk in place of the sort."""
    logits = logits_RV.float()
    values, ids = largest_by_value_then_id(logits, k)
    return logprobs_of(logits, chosen, values, ids)
