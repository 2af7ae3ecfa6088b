"""Chat templates render as transformers renders them, and cannot harm the process."""

from datetime import datetime
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from quire_contract.chat_template import ChatTemplate, PromptError

TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather at a place <now> & later",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "abc123def", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TEMPLATES = {
    "chatml": """{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' -}}
{%- endif -%}
{% for message in messages %}
    {% generation %}{{ '<|im_start|>' + message.role + '\\n' }}{{ message.content | trim }}{{ '<|im_end|>' + '\\n' }}{% endgeneration %}
{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "llama3": """{{- bos_token }}
{%- set ns = namespace(first=true, system='') %}
{%- set date = date_string if date_string is defined else '26 Jul 2024' %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date + "\\n" }}
{%- if tools is not none %}
    {{- "Functions:\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- ns.system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role == 'ipython' or message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("Only one call at once") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}""",
    "mistral": """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message.role not in ['user', 'assistant', 'tool'] %}
        {{- raise_exception('Only user, assistant and tool') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if tools is not none and loop.last %}
            {{- '[AVAILABLE_TOOLS][' }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != 'return' %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ', ' }}{%- endif %}
                {%- endfor %}
                {{- '}}' }}
            {%- endfor %}
            {{- '][/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
            {%- if not call.id is defined or call.id | length != 9 %}{%- continue %}{%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}
        {%- endfor %}
        {{- ']' + eos_token }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "qwen": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query=messages | length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and not (message.content.startswith('<tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query and reasoning %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.lstrip('\\n') }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
}
SYSTEM = {"role": "system", "content": "Be brief & <kind>. "}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": 'Grüezi <b>"you"</b>'}],
    "system": [SYSTEM, {"role": "user", "content": " What is 2 + 2?\n"}],
    "many turns": [
        SYSTEM,
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "日本語?"},
        {"role": "assistant", "content": "  yes  ", "reasoning_content": "easy", "thinking": "easy"},
        {"role": "user", "content": "c"},
    ],
    "tool results": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 21}', "tool_call_id": "abc123def"},
    ],
}


def template_of(source: str, **options: Any) -> ChatTemplate:
    return ChatTemplate({"default": source}, TOKENS, **options)


def oracle_of(byte_level: Tokenizer, source: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level, chat_template=source, **TOKENS)


def ask(content: str = "hi") -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_text_equals_transformers(
    byte_level: Tokenizer, name: str, chat: str, tools: list[dict[str, Any]] | None, add_generation_prompt: bool
) -> None:
    expected = oracle_of(byte_level, TEMPLATES[name]).apply_chat_template(
        CHATS[chat], tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
    )

    text = template_of(TEMPLATES[name]).render(CHATS[chat], tools=tools, add_generation_prompt=add_generation_prompt)

    assert text == expected


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("content", ["The answer is", "The answer is ", "x", "The <|im_end|> answer is\n"])
def test_a_continued_message_equals_transformers(byte_level: Tokenizer, name: str, content: str) -> None:
    chat = [*ask(), {"role": "assistant", "content": content}]
    expected = oracle_of(byte_level, TEMPLATES[name]).apply_chat_template(
        chat, continue_final_message=True, tokenize=False
    )

    text = template_of(TEMPLATES[name]).render(chat, add_generation_prompt=False, continue_final_message=True)

    assert text == expected


@pytest.mark.parametrize("kwargs", [{"enable_thinking": False}, {"date_string": "1 Jan 2030"}, {"bos_token": "X"}])
def test_template_arguments_equal_transformers(byte_level: Tokenizer, kwargs: dict[str, Any]) -> None:
    for source in TEMPLATES.values():
        expected = oracle_of(byte_level, source).apply_chat_template(
            ask(), add_generation_prompt=True, tokenize=False, **kwargs
        )

        text = template_of(source).render(ask(), template_kwargs=kwargs)

        assert text == expected


def test_the_template_for_tools_is_used_with_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})

    texts = [template.render(ask()), template.render(ask(), tools=[TOOL])]

    assert texts == ["plain", "tools"]


def test_developer_becomes_system_unless_the_template_knows_it() -> None:
    chat = [{"role": "developer", "content": "x"}]
    knowing, unknowing = "{# developer #}{{ messages[0].role }}", "{{ messages[0].role }}"

    texts = [template_of(source).render(chat) for source in (knowing, unknowing)]

    assert texts == ["developer", "system"]
    assert chat[0]["role"] == "developer"


def test_the_date_comes_from_the_given_clock() -> None:
    template = template_of("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2026, 2, 3))

    assert template.render(ask()) == "03 Feb 2026"


def test_a_refusal_of_the_template_is_told() -> None:
    with pytest.raises(PromptError, match="Only user, assistant and tool") as caught:
        template_of(TEMPLATES["mistral"]).render([{"role": "function", "content": "x"}])

    assert (caught.value.status, caught.value.param) == (400, "messages")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content + 'x' }}",
        "{{ messages[0].content + 5 }}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
        "{{ messages[0].nothing.at.all }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages | tojson(indent='x', sort_keys=messages, separators=1) }}",
    ],
)
def test_a_template_that_fails_is_a_refusal_too(source: str) -> None:
    with pytest.raises(PromptError, match="template"):
        template_of(source).render(ask())


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['os'] }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format(1).x }}",
        "{% include '/etc/hostname' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source: str) -> None:
    try:
        text = template_of(source).render(ask())
    except PromptError as error:
        text = error.message

    assert "<" not in text
    assert text == "" or "template" in text


def test_a_message_is_never_a_template() -> None:
    text = template_of("{{ messages[0].content }}").render(ask("{{ 7 * 7 }}{% raw %}"))

    assert text == "{{ 7 * 7 }}{% raw %}"


def test_output_is_bounded() -> None:
    template = template_of("{% for i in range(1000) %}{{ messages[0].content }}{% endfor %}", max_chars=5000)

    with pytest.raises(PromptError, match="more than 5000 characters"):
        template.render(ask("0123456789"))


def test_a_template_that_does_not_compile_is_refused_at_once() -> None:
    with pytest.raises(PromptError, match="'default' is not valid Jinja2"):
        template_of("{% if %}")


def test_a_model_without_a_template_says_so() -> None:
    with pytest.raises(PromptError, match="no chat template"):
        ChatTemplate({}, {}).render(ask())


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_template_arguments_cannot_replace_the_conversation(name: str) -> None:
    with pytest.raises(PromptError, match=name) as caught:
        template_of("x").render(ask(), template_kwargs={name: []})

    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize(
    ("chat", "source"), [([], "x"), ([{"role": "assistant", "content": None}], "x"), (ask(), "nothing of it")]
)
def test_a_message_that_cannot_be_continued_is_refused(chat: list[dict[str, Any]], source: str) -> None:
    with pytest.raises(PromptError) as caught:
        template_of(source).render(chat, add_generation_prompt=False, continue_final_message=True)

    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in messages %}{% for b in messages %}{{ b.role }}{% endfor %}{% endfor %}",
        "{% for a in messages %}{% for b in messages %}{% if b.role == 'no' %}x{% endif %}{% endfor %}{% endfor %}",
        "{% for a in messages %}{% for b in messages %}x{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_takes_too_long_over_made_up_messages_is_stopped(source: str) -> None:
    template = ChatTemplate({"default": source}, {}, max_render_s=0.05)
    messages = [{"role": "user", "content": "a"}] * 4096

    with pytest.raises(PromptError, match=r"takes longer than 0.05 s over these messages; send fewer"):
        template.render(messages)
    few = template.render(messages[:2])

    assert few in ("user" * 4, "", "xxxx")
