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
