#include "text/named_templates.h"

namespace millrace::text {
namespace {

// All white space that counts is inside strings; a "-" at each block takes the rest away.

constexpr absl::string_view kPlain = R"(
{%- for message in messages -%}
  {%- if message.role == 'system' -%}
    {{ message.content + '\n\n' }}
  {%- elif message.role == 'user' -%}
    {{ 'User: ' + message.content + '\n' }}
  {%- elif message.role == 'assistant' -%}
    {{ 'Assistant:' }}
    {%- generation %}{{ ' ' + message.content + eos_token }}{% endgeneration -%}
    {{ '\n' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ 'Assistant:' }}
{%- endif -%}
)";

constexpr absl::string_view kChatMl = R"(
{%- for message in messages -%}
  {{ '<|im_start|>' + message.role + '\n' }}
  {%- if message.role == 'assistant' -%}
    {%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration -%}
  {%- else -%}
    {{ message.content + '<|im_end|>' }}
  {%- endif -%}
  {{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ '<|im_start|>assistant\n' }}
{%- endif -%}
)";

constexpr absl::string_view kZephyr = R"(
{%- for message in messages -%}
  {{ '<|' + message.role + '|>\n' }}
  {%- if message.role == 'assistant' -%}
    {%- generation %}{{ message.content + eos_token }}{% endgeneration -%}
  {%- else -%}
    {{ message.content + eos_token }}
  {%- endif -%}
  {{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ '<|assistant|>\n' }}
{%- endif -%}
)";

// As Meta's code has it: the system message is part of the first user's.
constexpr absl::string_view kLlama2 = R"(
{%- set ns = namespace(system='', role='assistant') -%}
{%- for message in messages -%}
  {%- if message.role == 'system' and loop.first -%}
    {%- set ns.system = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' -%}
  {%- elif message.role == ns.role or message.role == 'system' -%}
    {{ raise_exception('user and assistant must take turns, the user first') }}
  {%- elif message.role == 'user' -%}
    {{ bos_token + '[INST] ' + ns.system + message.content.strip() + ' [/INST]' }}
    {%- set ns.system = '' -%}
    {%- set ns.role = 'user' -%}
  {%- else -%}
    {%- generation %}{{ ' ' + message.content.strip() + ' ' + eos_token }}{% endgeneration -%}
    {%- set ns.role = 'assistant' -%}
  {%- endif -%}
{%- endfor -%}
)";

constexpr absl::string_view kLlama3 = R"(
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
  {{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}
  {%- if message.role == 'assistant' -%}
    {%- generation %}{{ message.content | trim + '<|eot_id|>' }}{% endgeneration -%}
  {%- else -%}
    {{ message.content | trim + '<|eot_id|>' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif -%}
)";

// As Stanford's code has it; a system message stands in place of its preamble.
constexpr absl::string_view kAlpaca = R"(
{%- if messages[0].role != 'system' -%}
  {{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n' }}
{%- endif -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}
    {{ message.content + '\n\n' }}
  {%- elif message.role == 'user' -%}
    {{ '### Instruction:\n' + message.content + '\n\n' }}
  {%- elif message.role == 'assistant' -%}
    {{ '### Response:\n' }}
    {%- generation %}{{ message.content + eos_token }}{% endgeneration -%}
    {{ '\n\n' }}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{ '### Response:\n' }}
{%- endif -%}
)";

}  // namespace

std::optional<absl::string_view> NamedTemplate(absl::string_view name) {
  if (name == "plain") return kPlain;
  if (name == "chatml") return kChatMl;
  if (name == "zephyr") return kZephyr;
  if (name == "llama2") return kLlama2;
  if (name == "llama3") return kLlama3;
  if (name == "alpaca") return kAlpaca;
  return std::nullopt;
}

absl::string_view TemplateNames() { return "plain, chatml, zephyr, llama2, llama3, alpaca"; }

}  // namespace millrace::text
