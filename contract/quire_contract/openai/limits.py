"""How much one request may ask. The same defaults in router and worker, so that one never takes what the other refuses."""

from dataclasses import dataclass

MAX_SEED = 2**63 - 1
MIN_SEED = -(2**63)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds that do not depend on the model. Violations are 400, a body that is too large 413."""

    max_body_bytes: int = 4 * 1024 * 1024
    """Of a request's body."""
    max_n: int = 16
    """Choices for each prompt."""
    max_prompts: int = 256
    """Prompts in one completion request."""
    max_choices: int = 1024
    """Prompts times n."""
    max_messages: int = 4096
    """Messages in one chat."""
    max_stop: int = 4
    """Stop strings, as OpenAI has it."""
    max_stop_chars: int = 256
    """Characters of one stop string; so much text may be held back while streaming."""
    max_stop_token_ids: int = 128
    max_logit_bias: int = 1024
    """Entries of logit_bias."""
    max_logprobs: int = 20
    """top_logprobs of a chat, logprobs of a completion."""
    max_cache_salt_chars: int = 1024
    max_allowed_token_ids: int = 65_536
    max_bad_words: int = 128
    max_bad_word_chars: int = 128
    """Characters of one of bad_words."""
    max_logprob_token_ids: int = 128
    max_prompt_logprob_entries: int = 524_288
    """Prompt tokens, of all choices, times the log-probabilities that each is shown with."""
    max_pattern_size: int = 256
    """repetition_detection.max_pattern_size, tokens."""
    max_pattern_count: int = 1024
    """repetition_detection.min_count."""
    max_schema_bytes: int = 256 * 1024
    """Of a JSON schema, of a grammar, and of all choices together, in structured output."""
    max_schema_depth: int = 100
    """Objects and lists inside one another in a JSON schema."""
    max_regex_chars: int = 16 * 1024
    max_choice_strings: int = 10_000
    """Entries of structured_outputs.choice."""
    max_tools: int = 128
    """Tools of one chat, as OpenAI has it."""
    max_tool_schema_bytes: int = 128 * 1024
    """JSON of one function's parameters."""
    max_tool_schema_depth: int = 64
    """Levels of a schema, and of a template argument."""
    template_kwargs: frozenset[str] = frozenset(
        {"enable_thinking", "thinking", "reasoning_effort", "preserve_thinking", "thinking_budget"}
    )
    """Names that chat_template_kwargs may hold: what chat templates read to turn reasoning on and off."""
    max_logprob_entries: int = 1_048_576
    """Output tokens, of all choices, times the log-probabilities that each is shown with, in an answer that is not streamed."""
    max_allowed_token_entries: int = 1_048_576
    """Entries of allowed_token_ids times prompts: each prompt goes to the engine with the list."""
