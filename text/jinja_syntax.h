// The parts that a template is made of (text/jinja.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace::text::jinja {

inline constexpr size_t kMaxSourceBytes = 1 << 18;
// Of expressions and blocks in each other: what bounds the stack.
inline constexpr int kMaxHeight = 150;

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

struct Expression {
  enum class Kind {
    kString,  // text
    kNumber,  // number
    kTrue,
    kFalse,
    kNone,
    kName,  // text
    kList,  // children
    kDict,  // children: key, value, key, value, …
    kOr,    // children: two; so are the next ones
    kAnd,
    kBinary,   // text: + - * // % ~
    kCompare,  // text: == != < <= > >= in, not in
    kNot,      // children: one
    kNegative,
    kConditional,  // children: value, condition, value otherwise (null: undefined)
    kMember,       // children: object; text
    kIndex,        // children: object, index
    kSlice,        // children: object, begin, end, step (null: left out)
    kCall,         // children: function, arguments, of which the last keywords.size() are named
    kFilter,       // text; children: value, arguments; keywords likewise
    kTest,         // text; children: value, arguments
  };
  Kind kind = Kind::kNone;
  int line = 0;
  int height = 1;
  std::string text;
  int64_t number = 0;
  std::vector<ExpressionPtr> children;
  std::vector<std::string> keywords;
};

struct Statement;

struct Body {
  Body();
  ~Body();
  Body(Body&&) noexcept;
  Body& operator=(Body&&) noexcept;

  std::vector<Statement> statements;
  bool has_generation = false;  // here or further in
};

struct Statement {
  enum class Kind {
    kText,        // text
    kPrint,       // expressions: one
    kIf,          // expressions: conditions; bodies: one each, and that of else
    kFor,         // names; expressions: what, condition or null; bodies: each, else (may be empty)
    kSet,         // names: variable, or namespace and attribute; expressions: one; bodies: one in place of it
    kGeneration,  // bodies: one
    kBreak,
    kContinue,
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  std::vector<std::string> names;
  std::vector<ExpressionPtr> expressions;
  std::vector<Body> bodies;
};

absl::StatusOr<std::unique_ptr<Body>> ParseTemplate(absl::string_view source);

}  // namespace millrace::text::jinja
