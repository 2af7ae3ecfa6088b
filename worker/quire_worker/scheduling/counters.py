"""What the scheduler counts. Counters never reset while serving."""

_SMOOTHING = 0.05
"""Weight of the newest choice: about the last twenty count."""


class Counters:
    """Totals since the scheduler was made."""

    __slots__ = (
        "mean_output_tokens",
        "mean_prompt_tokens",
        "num_cached_tokens",
        "num_generated_tokens",
        "num_preempted_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_steps",
        "prefix_hits",
        "prefix_queries",
        "queue_time_s",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the steps that warmed up."""
        self.num_steps = 0
        """Steps committed."""
        self.num_preemptions = 0
        self.num_preempted_tokens = 0
        """Tokens whose KV preempted choices gave up; what the cache keeps of it is not computed again."""
        self.num_prompt_tokens = 0
        """Prompt tokens of choices at first admission, cached ones included."""
        self.num_cached_tokens = 0
        """Of those, found in the cache."""
        self.num_generated_tokens = 0
        self.prefix_queries = 0
        """Tokens looked up in the prefix cache, at every admission."""
        self.prefix_hits = 0
        self.queue_time_s: list[float] = []
        """Of each choice first admitted; the reader empties it."""
        self.mean_prompt_tokens = 0.0
        """Of choices lately first admitted, those in the cache left out; 0 before the first."""
        self.mean_output_tokens = 0.0
        """Of choices that lately ended; 0 before the first."""

    def on_first_admission(self, num_prompt: int, num_cached: int, queue_time_s: float) -> None:
        """A choice enters the batch for the first time."""
        self.num_prompt_tokens += num_prompt
        self.num_cached_tokens += num_cached
        self.queue_time_s.append(queue_time_s)
        self.mean_prompt_tokens = _smooth(self.mean_prompt_tokens, num_prompt - num_cached)

    def on_end(self, num_generated: int) -> None:
        """A choice that was admitted has ended, however that came."""
        self.mean_output_tokens = _smooth(self.mean_output_tokens, num_generated)


def _smooth(old: float, new: float) -> float:
    return new if old == 0.0 else old + _SMOOTHING * (new - old)
