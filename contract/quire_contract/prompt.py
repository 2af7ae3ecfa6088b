"""Bodies to token ids, and token ids to text: the same bytes in router and worker, because both run this with the same bundle.

Knows no HTTP and no model; everything comes from the prompt bundle.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from tokenizers import Tokenizer

from quire_contract.chat_template import ChatTemplate, PromptError
from quire_contract.detokenize import Detokenizer, TokenStream
from quire_contract.model_folder import load_tokenizer
from quire_contract.openai.errors import CODE_CONTEXT_LENGTH
from quire_contract.openai.model_checks import check_token_ids
from quire_contract.prompt_bundle import PromptBundle
from quire_contract.prompt_input import ChatInput, HasPrompt, PromptInput

__all__ = ["PromptError", "PromptRenderer", "TokenStream"]


class PromptRenderer:
    """Renders and tokenises for one bundle. Safe to use from several threads; tokenising releases the interpreter lock."""

    def __init__(self, bundle: PromptBundle, now: Callable[[], datetime] = datetime.now) -> None:
        """PromptError if a template does not compile, ModelFolderError if the tokenizer is none."""
        self.bundle = bundle
        self._tokenizer: Tokenizer = load_tokenizer(bundle.tokenizer_json, "prompt bundle")
        self.template = ChatTemplate(bundle.chat_templates, bundle.special_tokens, now)
        """Writes conversations as texts."""
        self._detokenizer = Detokenizer(self._tokenizer, bundle.tokenizer_json)
        longest = self._detokenizer.longest_token_chars()
        self._max_chars = None if longest is None else longest * bundle.max_model_len

    @property
    def tokenizer(self) -> Tokenizer:
        """For whoever cuts texts or pairs them. It neither truncates nor pads, and must stay so: it is shared."""
        return self._tokenizer

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        *,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """Token ids of a conversation. PromptError (HTTP 400) if the template refuses it."""
        text = self.render(messages, tools, add_generation_prompt, continue_final_message, template_kwargs)
        return self._tokenise(text, add_special_tokens, "messages")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Text of a conversation."""
        return "".join(self.pieces(messages, tools, add_generation_prompt, continue_final_message, template_kwargs))

    def pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Text of a conversation, as `ChatTemplate.pieces` gives it."""
        return self.template.pieces(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )

    def completion(self, prompt: str | list[int], add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, or the ids themselves.

        ApiError 400 for a text so long that it cannot fit the model however it is cut: tokenising megabytes takes seconds.
        """
        return prompt if isinstance(prompt, list) else self._tokenise(prompt, add_special_tokens, "prompt")

    @property
    def max_chars(self) -> int | None:
        """Longer texts are certainly longer than the model's length. None: that cannot be known."""
        return self._max_chars

    def check_length(self, num_chars: int, param: str) -> None:
        """PromptError for a text so long that it cannot fit the model however it is cut."""
        if self._max_chars is not None and num_chars > self._max_chars:
            raise PromptError(
                f"This model's maximum context length is {self.bundle.max_model_len} tokens, but the prompt has "
                f"{num_chars} characters, which are certainly more tokens; shorten it.",
                param,
                CODE_CONTEXT_LENGTH,
            )

    def _tokenise(self, text: str, add_special_tokens: bool, param: str) -> list[int]:
        self.check_length(len(text), param)
        # The "fast" form leaves out character offsets, which nobody here reads.
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def request_prompts(self, request: HasPrompt) -> list[list[int]]:
        """Prompts of a decoded body, in the order of its choices: one for a chat, one for each prompt of a completion.

        ApiError (HTTP 400) for token ids outside the vocabulary, for an empty prompt and for what the template refuses.
        """
        source = request.prompt_input()
        if isinstance(source, ChatInput):
            ids = self.chat(
                source.messages,
                source.tools,
                source.add_generation_prompt,
                source.continue_final_message,
                source.template_kwargs,
                add_special_tokens=source.add_special_tokens,
            )
            return [self.cut(ids, source)]
        prompts = [self.completion(prompt, source.add_special_tokens) for prompt in source.prompts]
        for index, prompt in enumerate(prompts):
            param = "prompt" if len(prompts) == 1 else f"prompt[{index}]"
            if isinstance(source.prompts[index], list):
                check_token_ids(prompt, self.bundle.vocab_size, param)
            if not prompt:
                raise PromptError(f"{param}: is empty; at least one token is needed.", param)
        return [self.cut(prompt, source) for prompt in prompts]

    def cut(self, token_ids: list[int], source: PromptInput) -> list[int]:
        """The last tokens of a prompt that is to be truncated; any other as it is."""
        return token_ids if source.truncation is None else source.truncation.cut(token_ids, self.bundle.max_model_len)

    def word_tokens(self, words: Iterable[str]) -> list[tuple[int, ...]]:
        """How each word may be spelt in an output: at the beginning of a text, and after a space. Without duplicates."""
        texts = [text for word in words for bare in (word.lstrip() or word,) for text in (bare, " " + bare)]
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return list(dict.fromkeys(tuple(encoding.ids) for encoding in found if encoding.ids))

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of the ids; what a stream of them would have sent."""
        return self._detokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def stream(
        self,
        *,
        skip_special_tokens: bool = True,
        prompt_ids: Sequence[int] = (),
        shown_token_ids: Collection[int] = (),
    ) -> TokenStream:
        """A stream that turns one choice's tokens into text; see `Detokenizer.stream`."""
        return self._detokenizer.stream(
            skip_special_tokens=skip_special_tokens, prompt_ids=prompt_ids, shown_token_ids=shown_token_ids
        )

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Sources by name."""
        return self.bundle.chat_templates

    def added_token(self, text: str) -> tuple[int, bool] | None:
        """(id, whether it is special) of the token that was added to the vocabulary as exactly this text."""
        return self._detokenizer.added_token(text)

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of a token inside a text, for log-probabilities."""
        return self._detokenizer.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """A token inside a text, for log-probabilities."""
        return self._detokenizer.token_text(token_id)

    def token_strings(self, token_ids: Iterable[int]) -> list[str]:
        """Tokens as the vocabulary spells them; "" for unknown ids."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]
