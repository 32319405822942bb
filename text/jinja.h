// Renders templates of chats and of prompts: the part of Jinja that the templates of Hugging Face's tokenizers use.
//
// Understood, with Jinja 3.1's meaning and transformers' settings (trim_blocks and lstrip_blocks on, a last newline of
// the template dropped):
//   {# … #}, {{ … }}, {% for x[, y] in … [if …] %} [{% else %}], {% if %} {% elif %} {% else %}, {% set x = … %},
//   {% set n.x = … %}, {% set x %} … {% endset %}, {% break %}, {% continue %}, {% generation %} … {% endgeneration %};
//   - and + at the marks
//   strings, whole numbers, true, false, none, lists, dicts; . [] [a:b:c] ( ); or and not, == != < <= > >=, in, not in,
//   + - * // % ~, "a if b else c"
//   filters   trim length count tojson upper lower title capitalize default d join list first last string int replace
//             selectattr rejectattr map(attribute=…) items safe
//   tests     defined undefined none string mapping iterable sequence number integer boolean true false odd even
//             equalto eq == ne in
//   methods   strip lstrip rstrip startswith endswith split upper lower title capitalize replace; items keys values get
//   functions raise_exception, namespace, range; loop.index index0 revindex revindex0 first last length previtem
//   nextitem
// All else is an error that names it when the template is parsed, or, for values of the wrong type, rendered.
//
// A template and its values come from outside: sizes, nesting, work and output are bounded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json_fwd.hpp"

namespace millrace::text {

// Text of which each byte knows whether a template or a message said it, through all that templates do with it.
struct MarkedText {
  std::string text;
  std::vector<uint8_t> own;  // [text.size()], 1: a message

  static MarkedText Of(absl::string_view text, bool own) {
    return {std::string(text), std::vector<uint8_t>(text.size(), own)};
  }
  void Append(const MarkedText& other) {
    text += other.text;
    own.insert(own.end(), other.own.begin(), other.own.end());
  }
  MarkedText Part(size_t begin, size_t size) const {
    const auto from = own.begin() + static_cast<ptrdiff_t>(begin);
    return {text.substr(begin, size), {from, from + static_cast<ptrdiff_t>(size)}};
  }
};

namespace jinja {
struct Body;
struct Value;
}  // namespace jinja

struct JinjaLimits {
  uint64_t work = uint64_t{1} << 28;    // bytes moved, and 64 for each part of the template that is evaluated
  uint64_t output = uint64_t{1} << 26;  // bytes
};

struct JinjaOutput {
  MarkedText rendered;
  std::vector<uint8_t> generated;  // [rendered.text.size()], 1: inside {% generation %}
};

// Constant after Parse: any thread.
class JinjaTemplate {
 public:
  // A message as the template sees it: names and their values, in order.
  using Fields = std::vector<std::pair<std::string, MarkedText>>;
  struct Variables {
    std::vector<Fields> messages;
    std::vector<std::pair<std::string, std::string>> strings;  // bos_token, …
    bool add_generation_prompt = false;
    // An object whose members are variables too, null: none. Numbers that are not whole are text, as JSON writes them.
    const nlohmann::ordered_json* values = nullptr;
    // Printing what is undefined, joining it to text or looping over it is an error, not nothing (almost Jinja's
    // StrictUndefined: it may still be false).
    bool strict = false;
  };

  // INVALID_ARGUMENT naming the line and what is wrong or not supported.
  static absl::StatusOr<JinjaTemplate> Parse(absl::string_view source);
  JinjaTemplate(JinjaTemplate&&) noexcept;
  JinjaTemplate& operator=(JinjaTemplate&&) noexcept;
  ~JinjaTemplate();

  // INVALID_ARGUMENT with the line for what the template raises and for operations on values that have none;
  // RESOURCE_EXHAUSTED at a limit.
  absl::StatusOr<JinjaOutput> Render(const Variables& variables, const JinjaLimits& limits = {}) const;

  // Whether it marks what the assistant says with {% generation %}.
  bool has_generation() const;

 private:
  explicit JinjaTemplate(std::unique_ptr<const jinja::Body> body);
  std::unique_ptr<const jinja::Body> body_;
};

}  // namespace millrace::text
