"""Renders the chat templates of chat_templates.json with Jinja itself, set up as transformers sets it up.

Usage: make_chat_goldens.py > text/chat_templates.json   (needs jinja2 >= 3.1)
{% generation %} is shown as \\x01 and \\x02 around what is inside.
"""
import json

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return "\x01" + caller() + "\x02"


def raise_exception(message):
    raise TemplateError(message)


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
environment.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
environment.globals["raise_exception"] = raise_exception

TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": " Höw are \"you\"?\n"},
    {"role": "assistant", "content": "Fine {{ 1 }} <|im_end|>"},
    {"role": "user", "content": "Good\tß"},
    {"role": "assistant", "content": " Bye "},
]
SHORT = TALK[1:3]

# In the manner of what models bring along.
CONVERSATIONS = [
    # ChatML, one line
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # a default system message
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message.role + '\\n' + message.content}}{% if (loop.last and add_generation_prompt) or not loop.last %}"
    "{{ '<|im_end|>' + '\\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # system inside the first user message, turns checked
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    # headers
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    # no system role, the assistant called model
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}",
    # several lines, trimmed by the environment
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}\n",
    # tools, dates and reasoning that are not given
    """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- the system message comes apart -#}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|system|>\\n" }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|' + message['role'] + '|>\\n\\n'+ message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one call at a time") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n\\n' }}
{%- endif %}
""",
    """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {%- if loop.last or (not loop.last and reasoning) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {% generation %}{{ 'G' ~ loop.index }}{% endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
""",
    """{%- set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{%- for message in messages | rejectattr("role", "==", "system") %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[LAST]" }}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("roles") }}
    {%- endif %}
{%- endfor %}""",
]

# Each rule by itself.
SNIPPETS = [
    "{{ 'a' ~ 1 ~ true ~ none }}|{{ 1 + 2 * 3 - -4 }}|{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }}",
    "{{ 'x' if 0 else 'y' }}{{ 'z' if false }}|{{ 1 if 2 else 3 if 4 else 5 }}",
    "{{ 'abc'[1] }}{{ 'äöü'[-1] }}{{ 'äöü'[::-1] }}{{ 'abcdef'[1:5:2] }}{{ 'abc'[5:] }}{{ 'abc'[-2:] }}{{ 'abcdef'[-1:-9:-2] }}",
    "{{ [1,2,3][1:]|length }}{{ [1,2,3,4][::2]|join('-') }}{{ []|join(',') }}{{ ['a','b']|last }}{{ ['a']|first }}",
    "{{ '  a b '.strip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ '\u00a0é\u2003'.strip() }}|",
    "{{ 'a,b,,c'.split(',')|join('+') }}|{{ ' a  b\\nc '.split()|join('+') }}|{{ 'a b c'.split(' ', 1)|join('+') }}|{{ ' a  b c '.split(none, 1)|join('+') }}",
    "{{ 'hello wORLD-foo bar'.title() }}|{{ 'hELLO'|capitalize }}|{{ 'straße'|upper }}|{{ 'ÀÉ'|lower }}|{{ 'aXbX'|replace('X', '__') }}|{{ 'aaa'.replace('a', 'b', 2) }}",
    "{{ undefined_thing }}|{{ undefined_thing is defined }}|{{ undefined_thing|default('d') }}|{{ ''|default('d') }}|{{ ''|default('d', true) }}|{{ ''|d('e', boolean=true) }}",
    "{{ none is none }}{{ 'a' is string }}{{ {} is mapping }}{{ [] is iterable }}{{ 1 is number }}{{ true is boolean }}{{ 3 is odd }}{{ 3 is not even }}{{ 1 is integer }}{{ 'a' is in ['a'] }}",
    "{{ 'a' in 'cat' }}{{ 'a' not in ['b'] }}{{ 'k' in {'k': 1} }}{{ 1 == true }}{{ 1 == '1' }}{{ [1,'a'] == [1,'a'] }}{{ 'a' < 'b' }}{{ 2 >= 3 }}{{ {'a': 1} == {'a': 1} }}",
    "{{ not true or true and false }}{{ 'a' or 'b' }}{{ '' or 'b' }}{{ 'a' and 'b' }}{{ not 'a' in 'b' }}",
    "{% for x in [1,2,3] %}{{ loop.index }}/{{ loop.length }}{{ loop.revindex0 }}{{ '' if loop.last else ',' }}{% endfor %}",
    "{% for x in [] %}a{% else %}none{% endfor %}{% for x in [1,2,3,4] if x % 2 == 0 %}{{ loop.index0 }}:{{ x }} {% endfor %}",
    "{% for x in 'añb' %}<{{ x }}{{ loop.previtem }}>{% endfor %}{% for k, v in {'a': 1, 'b': [2]}.items() %}{{ k }}={{ v|tojson }};{% endfor %}",
    "{% set x = 1 %}{% for i in [1,2] %}{{ x }}{% set x = x + 10 %}{{ x }} {% endfor %}{{ x }}{% if true %}{% set x = 5 %}{% endif %}{{ x }}",
    "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{% if i == 1 %}{% continue %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
    "{% set x %}in {{ 1 }} side{% endset %}[{{ x }}]{{ x|length }}",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc {% if true %} d {% endif %}\n\n{{ 1 }}\n",
    "a\n  {%- if true -%}\n  b\n  {%+ endif %}\nc\n  {# comment #}\nd {#- e -#} f",
    "x {{- ' y ' -}} z\n{{ 'a' }}\n{{- 'b' }}",
    "{{ {'a': 'q\"\\n\\\\é', 'b': [1, true, none], 'c': {}}|tojson }}{{ [1,{'a':[]}]|tojson(indent=2) }}{{ '\\x01/'|tojson }}",
    "{{ \"it's\" }}{{ 'a\\'b' }}{{ 'tab\\tq\\u00e9' }}{{ 'a' 'b' }}{{ '}}' }}{{ '%}' }}{{ {'a': {'b': 1}}['a']['b'] }}",
    "{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 'z') }}{{ {'a': 1}.b is defined }}{{ {'a':1,'b':2}|list|join }}{{ {'a':1}.keys()|list|length }}",
    "{{ '12'|int + 1 }}{{ 'x'|int }}{{ 5|string + 'a' }}{{ 'ab' * 3 }}{{ [1] + [2] == [1,2] }}{{ range(2,8,3)|list|join(',') }}{{ range(3,0,-1)|join }}",
    "{{ messages|map(attribute='role')|join(',') }}{{ messages[0].nothing is none }}{{ messages[9] is defined }}{{ messages[0]['nothing'] }}",
    "{{ 'a'|upper ~ 'b' + 'c'|upper }}{{ 'a' ~ 'b' if true else 'c' ~ 'd' }}",
    "{{ '{{ 1 }}' }}{% if messages is sequence and messages is not string %}list{% endif %}{{ messages[1].content|trim|length }}",
    "{% generation %}a{{ 'b' }}{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}{% for x in [1,2] %}{% generation %}{{ x }}{% endgeneration %}{% endfor %}",
]

# Of these it is only said that they fail.
FAILURES = [
    "{{ raise_exception('no') }}", "{{ undefined_thing.a }}", "{{ 'a' + 1 }}", "{{ 1 // 0 }}", "{{ undefined_thing + 'a' }}",
    "{% if %}", "{% for x in [1] %}", "{{ 'a }}", "{{ a b }}", "{{ (1 }}", "{% endif %}", "{{ 'a'|nofilter }}", "{{ 1 is notest }}",
    "{% unknown %}", "{{ nothing() }}", "{{ 'a' < 1 }}", "{# a", "{{ 'a'.nomethod() }}", "{% set x.y = 1 %}",
]


def render(template, messages, prompt):
    case = {"template": template, "messages": messages, "prompt": prompt}
    try:
        case["expected"] = environment.from_string(template).render(
            messages=messages, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>")
    except Exception as error:
        case["fails"] = type(error).__name__
    return case


cases = []
for template in CONVERSATIONS:
    for messages in (TALK, SHORT, SHORT[:1], TALK[:2] + TALK[1:2]):
        for prompt in (False, True):
            cases.append(render(template, messages, prompt))
for template in SNIPPETS:
    cases.append(render(template, TALK, False))
    assert "fails" not in cases[-1], cases[-1]
for template in FAILURES:
    cases.append(render(template, TALK, False))
    assert "fails" in cases[-1], cases[-1]
print(json.dumps(cases, indent=0, ensure_ascii=True))
