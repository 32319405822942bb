// A template that parses renders within its limits, the same twice, with a mark for every byte; what messages say is
// made of nothing but their bytes, cased or escaped.
#include <cstdint>
#include <cstdlib>

#include "text/jinja.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using millrace::text::JinjaTemplate;
  using millrace::text::MarkedText;
  const absl::string_view source(reinterpret_cast<const char*>(data), size);
  const auto parsed = JinjaTemplate::Parse(source);
  if (!parsed.ok()) return 0;
  JinjaTemplate::Variables variables;
  variables.add_generation_prompt = true;
  variables.strings = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  for (const char* role : {"system", "user", "assistant"}) {
    variables.messages.push_back(
        {{"role", MarkedText::Of(role, false)}, {"content", MarkedText::Of(" \xC3\xA4 {{ x }} ", true)}});
  }
  const millrace::text::JinjaLimits limits = {.work = 1 << 20, .output = 1 << 16};
  const auto output = parsed->Render(variables, limits);
  const auto again = parsed->Render(variables, limits);
  if (output.ok() != again.ok() || output.status() != again.status()) abort();
  if (!output.ok()) return 0;
  const auto& rendered = output->rendered;
  if (rendered.text != again->rendered.text || rendered.own != again->rendered.own) abort();
  if (rendered.text.size() > limits.output || rendered.own.size() != rendered.text.size() ||
      output->generated.size() != rendered.text.size()) {
    abort();
  }
  return 0;
}
