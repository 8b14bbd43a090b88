"""The chat template's sandbox, and its agreement with transformers."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from server.api.chat_template import DEFAULT_TEMPLATE, ChatTemplate
from server.errors import BadRequest

MESSAGES = [
    {"role": "system", "content": "be <brief> & “kind”"},
    {"role": "user", "content": "hi\n"},
    {"role": "assistant", "content": "  hello "},
    {"role": "user", "content": "bye"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """{% for message in messages %}
    {% if loop.first and message.role != 'system' %}{{ raise_exception('x') }}{% endif %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
INST = """{{- bos_token }}
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' ~ (system ~ '\n' if loop.index0 == 1 else '') ~ message.content ~ ' [/INST]' }}
    {%- else %}
        {%- generation %}{{- ' ' ~ message.content ~ eos_token }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}"""
JSON = """{% set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}
{{ m | tojson }} {{ m | tojson(indent=2) }}{% endfor %} {{ ns.count }}"""


def render(source: str | None, max_length: int = 100_000, **extra: object) -> str:
    return ChatTemplate(source, TOKENS, lambda: 0.0).render(MESSAGES, True, extra, max_length)


@pytest.mark.parametrize("source", [CHATML, INST, JSON, DEFAULT_TEMPLATE])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_templates_render_as_in_transformers(source: str, add_generation_prompt: bool) -> None:
    ours = ChatTemplate(source, TOKENS, lambda: 0.0).render(MESSAGES, add_generation_prompt, {}, 100_000)
    values: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, **TOKENS}
    theirs = render_jinja_template(conversations=[MESSAGES], chat_template=source, **values)
    assert ours == theirs[0][0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ raise_exception.__globals__.json }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ range(10**9) | list }}",
        "{{ messages[9].content }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ [1] | sum(attribute='x') | int('x', 99) }}{{ messages | tojson(indent=messages) }}",
        "{% include 'x' %}",
    ],
)
def test_what_the_sandbox_forbids_or_cannot_do_is_a_bad_request(source: str) -> None:
    with pytest.raises(BadRequest) as caught:
        render(source)
    assert caught.value.code == "chat_template_error"


def test_the_rendered_length_is_bounded_before_it_is_whole() -> None:
    with pytest.raises(BadRequest, match="more than 1000 characters"):
        render("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", max_length=1000)


def test_a_template_that_is_none_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(ValueError, match="line 2"):
        render("{% if x %}\n{% endfor %}")


def test_the_time_is_the_clocks() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}", {}, lambda: 86400.0 * 200).render([], True, {}, 100) == "1970"


def test_values_of_the_server_cannot_be_replaced() -> None:
    assert render("{{ mood }}", mood="fine") == "fine"
    for name in ("messages", "bos_token", "add_generation_prompt", "tools"):
        with pytest.raises(BadRequest, match=name):
            ChatTemplate("", TOKENS, lambda: 0.0).render([], True, {name: "x"}, 100)
