// The chat templates that a job can name.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace millrace::text {

// The Jinja source (text/jinja.h) of plain, chatml, zephyr, llama2, llama3 or alpaca, with what the assistant says
// inside {% generation %}. It uses messages, bos_token, eos_token and add_generation_prompt.
std::optional<absl::string_view> NamedTemplate(absl::string_view name);

// "plain, chatml, …", for messages.
absl::string_view TemplateNames();

}  // namespace millrace::text
