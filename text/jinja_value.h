// What expressions of a template come to, and what can be done with text (text/jinja.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/string_view.h"
#include "text/jinja.h"

namespace millrace::text::jinja {

struct Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<std::string, Value>>;  // in order; keys are distinct

struct Undefined {
  std::string name;
};
struct None {};
// The only value that changes.
struct Namespace {
  Dict variables;
};

struct Value {
  std::variant<Undefined, None, bool, int64_t, std::shared_ptr<const MarkedText>, std::shared_ptr<const List>,
               std::shared_ptr<const Dict>, std::shared_ptr<Namespace>>
      is;
  int depth = 0;  // of lists and dicts in each other

  static Value Text(MarkedText text) { return {std::make_shared<const MarkedText>(std::move(text))}; }
  static Value Text(absl::string_view text) { return Text(MarkedText::Of(text, false)); }

  // Null if it is something else.
  const MarkedText* text() const { return Pointed<const MarkedText>(); }
  const List* list() const { return Pointed<const List>(); }
  const Dict* dict() const { return Pointed<const Dict>(); }
  Namespace* space() const { return Pointed<Namespace>(); }
  bool undefined() const { return std::holds_alternative<Undefined>(is); }
  bool none() const { return std::holds_alternative<None>(is); }
  // Whole numbers, and true and false as 1 and 0.
  std::optional<int64_t> number() const;
  bool truth() const;
  // "a string", "a list", … for messages.
  absl::string_view kind() const;

 private:
  template <typename T>
  T* Pointed() const {
    const auto* pointer = std::get_if<std::shared_ptr<T>>(&is);
    return pointer == nullptr ? nullptr : pointer->get();
  }
};

const Value* Find(const Dict& dict, absl::string_view key);

// As Python's methods of the same names have it; text is UTF-8 and counted in characters.
int64_t Length(const MarkedText& text);
// Where each character begins, and the end.
std::vector<size_t> Offsets(const MarkedText& text);
// Without `characters`: white space.
MarkedText Strip(const MarkedText& text, bool left, bool right, const std::optional<std::string>& characters);
MarkedText Upper(const MarkedText& text);
MarkedText Lower(const MarkedText& text);
// The first letter of the text, or of each word, in upper case, the others in lower case.
MarkedText Capitalized(const MarkedText& text, bool each_word);
// Without a separator: at runs of white space, with none at the ends; what the last of `limit` cuts leaves stays as it
// is. A negative limit is none.
std::vector<MarkedText> Split(const MarkedText& text, const std::optional<std::string>& separator, int64_t limit);
// A string of JSON, quoted; not ASCII is kept.
MarkedText Quoted(const MarkedText& text);

// Indices of a Python slice of a sequence of `size`. Requires step != 0.
std::vector<size_t> SliceIndices(size_t size, std::optional<int64_t> begin, std::optional<int64_t> end, int64_t step);

}  // namespace millrace::text::jinja
