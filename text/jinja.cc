#include "text/jinja.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/jinja_syntax.h"
#include "text/jinja_value.h"

namespace millrace::text {
namespace jinja {
namespace {

using Kind = Expression::Kind;

constexpr uint64_t kNodeWork = 64;
constexpr int kMaxDepth = 64;  // of lists and dicts in each other

absl::Status Wrong(std::string what) { return absl::InvalidArgumentError(std::move(what)); }

MarkedText Plain(absl::string_view text) { return MarkedText::Of(text, false); }

// Python's // and %. Requires b != 0, and not the least number by -1.
int64_t FloorDivide(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

class Renderer {
 public:
  Renderer(const JinjaLimits& limits, bool strict, Dict globals)
      : work_(limits.work), limits_(limits), strict_(strict) {
    scopes_.push_back(std::move(globals));
  }

  absl::StatusOr<JinjaOutput> Render(const Body& body) {
    MILLRACE_RETURN_IF_ERROR(Run(body).status());
    return std::move(output_);
  }

 private:
  enum class Flow { kNext, kBreak, kContinue };

  absl::Status Charge(uint64_t work) {
    if (work > work_)
      return absl::ResourceExhaustedError(
          absl::StrCat("the template does more than ", limits_.work, " units of work"));
    work_ -= work;
    return absl::OkStatus();
  }

  // Statements.

  absl::StatusOr<Flow> Run(const Body& body) {
    for (const Statement& statement : body.statements) {
      MILLRACE_RETURN_IF_ERROR(Charge(kNodeWork));
      absl::StatusOr<Flow> flow = Flow::kNext;
      switch (statement.kind) {
        case Statement::Kind::kText:
          MILLRACE_RETURN_IF_ERROR(Print(Plain(statement.text)));
          break;
        case Statement::Kind::kPrint: {
          MILLRACE_ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expressions[0]));
          absl::StatusOr<MarkedText> text = AsText(value);
          if (!text.ok()) return At(statement.line, text.status());
          MILLRACE_RETURN_IF_ERROR(Print(*text));
          break;
        }
        case Statement::Kind::kIf:
          flow = RunIf(statement);
          break;
        case Statement::Kind::kFor:
          flow = RunFor(statement);
          break;
        case Statement::Kind::kSet:
          MILLRACE_RETURN_IF_ERROR(At(statement.line, RunSet(statement)));
          break;
        case Statement::Kind::kGeneration:
          ++generating_;
          scopes_.emplace_back();
          flow = Run(statement.bodies[0]);
          scopes_.pop_back();
          --generating_;
          break;
        case Statement::Kind::kBreak:
          return Flow::kBreak;
        case Statement::Kind::kContinue:
          return Flow::kContinue;
      }
      if (!flow.ok() || *flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  static absl::Status At(int line, const absl::Status& status) {
    // The innermost place is the most telling one.
    if (status.ok() || absl::StartsWith(status.message(), "line ")) return status;
    return Annotate(status, absl::StrCat("line ", line));
  }

  absl::Status Print(const MarkedText& text) {
    MILLRACE_RETURN_IF_ERROR(Charge(text.text.size()));
    output_.rendered.Append(text);
    output_.generated.resize(output_.rendered.text.size(), generating_ > 0);
    if (output_.rendered.text.size() <= limits_.output) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("the template makes more than ", limits_.output, " bytes"));
  }

  absl::StatusOr<Flow> RunIf(const Statement& statement) {
    for (size_t i = 0; i < statement.expressions.size(); ++i) {
      MILLRACE_ASSIGN_OR_RETURN(const Value condition, Evaluate(*statement.expressions[i]));
      if (condition.truth()) return Run(statement.bodies[i]);
    }
    if (statement.bodies.size() > statement.expressions.size()) return Run(statement.bodies.back());
    return Flow::kNext;
  }

  absl::StatusOr<Flow> RunFor(const Statement& statement) {
    MILLRACE_ASSIGN_OR_RETURN(const Value over, Evaluate(*statement.expressions[0]));
    absl::StatusOr<List> all = Items(over);
    if (!all.ok()) return At(statement.line, all.status());
    List items;
    for (Value& item : *all) {
      if (statement.expressions[1] != nullptr) {
        Dict scope;
        MILLRACE_RETURN_IF_ERROR(At(statement.line, Bind(statement.names, item, &scope)));
        scopes_.push_back(std::move(scope));
        absl::StatusOr<Value> wanted = Evaluate(*statement.expressions[1]);
        scopes_.pop_back();
        MILLRACE_RETURN_IF_ERROR(wanted.status());
        if (!wanted->truth()) continue;
      }
      items.push_back(std::move(item));
    }
    if (items.empty() && statement.bodies.size() > 1) return Run(statement.bodies[1]);
    const auto size = static_cast<int64_t>(items.size());
    for (int64_t i = 0; i < size; ++i) {
      MILLRACE_RETURN_IF_ERROR(Charge(10 * kNodeWork));
      Dict loop = {{"index0", {i}},          {"index", {i + 1}},  {"revindex0", {size - 1 - i}},
                   {"revindex", {size - i}}, {"first", {i == 0}}, {"last", {i + 1 == size}},
                   {"length", {size}}};
      if (i > 0) loop.emplace_back("previtem", items[static_cast<size_t>(i) - 1]);
      if (i + 1 < size) loop.emplace_back("nextitem", items[static_cast<size_t>(i) + 1]);
      Dict scope = {{"loop", {std::make_shared<const Dict>(std::move(loop))}}};
      MILLRACE_RETURN_IF_ERROR(At(statement.line, Bind(statement.names, items[static_cast<size_t>(i)], &scope)));
      scopes_.push_back(std::move(scope));
      absl::StatusOr<Flow> flow = Run(statement.bodies[0]);
      scopes_.pop_back();
      MILLRACE_RETURN_IF_ERROR(flow.status());
      if (*flow == Flow::kBreak) break;
    }
    return Flow::kNext;
  }

  static absl::Status Bind(const std::vector<std::string>& names, const Value& item, Dict* scope) {
    if (names.size() == 1) {
      scope->emplace_back(names[0], item);
      return absl::OkStatus();
    }
    const List* parts = item.list();
    if (parts == nullptr || parts->size() != names.size())
      return Wrong(absl::StrCat("a loop over ", names.size(), " names is given ", item.kind()));
    for (size_t i = 0; i < names.size(); ++i) scope->emplace_back(names[i], (*parts)[i]);
    return absl::OkStatus();
  }

  absl::Status RunSet(const Statement& statement) {
    Value value;
    if (!statement.expressions.empty()) {
      MILLRACE_ASSIGN_OR_RETURN(value, Evaluate(*statement.expressions[0]));
    } else {
      JinjaOutput outer = std::exchange(output_, {});
      scopes_.emplace_back();
      const absl::StatusOr<Flow> flow = Run(statement.bodies[0]);
      scopes_.pop_back();
      value = Value::Text(std::exchange(output_, std::move(outer)).rendered);
      MILLRACE_RETURN_IF_ERROR(flow.status());
    }
    const std::string& name = statement.names[0];
    if (statement.names.size() == 1) {
      Assign(name, std::move(value), &scopes_.back());
      return absl::OkStatus();
    }
    const Value space = Look(name);
    if (space.space() == nullptr) return Wrong(absl::StrCat("'", name, "' is no namespace"));
    if (value.space() != nullptr) return Wrong("a namespace cannot be kept in a namespace");
    Assign(statement.names[1], std::move(value), &space.space()->variables);
    return absl::OkStatus();
  }

  static void Assign(const std::string& name, Value value, Dict* dict) {
    for (auto& [known, old] : *dict) {
      if (known != name) continue;
      old = std::move(value);
      return;
    }
    dict->emplace_back(name, std::move(value));
  }

  Value Look(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const Value* value = Find(*scope, name)) return *value;
    }
    return {Undefined{name}};
  }

  // Values.

  absl::StatusOr<Value> Text(MarkedText text) {
    MILLRACE_RETURN_IF_ERROR(Charge(text.text.size()));
    return Value::Text(std::move(text));
  }

  absl::StatusOr<Value> Listed(List items) {
    MILLRACE_RETURN_IF_ERROR(Charge(items.size() * kNodeWork));
    Value list;
    for (const Value& item : items) MILLRACE_RETURN_IF_ERROR(Deepen(item, &list));
    list.is = std::make_shared<const List>(std::move(items));
    return list;
  }

  static absl::Status Deepen(const Value& inner, Value* outer) {
    // It could come to hold itself.
    if (inner.space() != nullptr) return Wrong("a namespace cannot be kept in a list or a dict");
    outer->depth = std::max(outer->depth, inner.depth + 1);
    return outer->depth > kMaxDepth ? Wrong("lists are nested too deeply") : absl::OkStatus();
  }

  absl::StatusOr<MarkedText> AsText(const Value& value) const {
    if (value.text() != nullptr) return *value.text();
    if (const auto* undefined = std::get_if<Undefined>(&value.is)) {
      if (strict_) return Wrong(absl::StrCat("'", undefined->name, "' is undefined"));
      return MarkedText();
    }
    if (value.none()) return Plain("None");
    if (const auto* truth = std::get_if<bool>(&value.is)) return Plain(*truth ? "True" : "False");
    if (const auto number = value.number()) return Plain(absl::StrCat(*number));
    return Wrong(absl::StrCat("where text is wanted there is ", value.kind()));
  }

  // What a loop over the value gives.
  absl::StatusOr<List> Items(const Value& value) {
    List items;
    if (value.list() != nullptr) {
      items = *value.list();
    } else if (value.dict() != nullptr) {
      for (const auto& [key, inner] : *value.dict()) items.push_back(Value::Text(key));
    } else if (value.text() != nullptr) {
      MILLRACE_RETURN_IF_ERROR(Charge(value.text()->text.size() * kNodeWork));
      const std::vector<size_t> offsets = Offsets(*value.text());
      for (size_t i = 0; i + 1 < offsets.size(); ++i)
        items.push_back(Value::Text(value.text()->Part(offsets[i], offsets[i + 1] - offsets[i])));
    } else if (const auto* undefined = std::get_if<Undefined>(&value.is)) {
      if (strict_) return Wrong(absl::StrCat("'", undefined->name, "' is undefined"));
    } else {
      return Wrong(absl::StrCat("a loop over ", value.kind()));
    }
    MILLRACE_RETURN_IF_ERROR(Charge(items.size() * kNodeWork));
    return items;
  }

  absl::StatusOr<bool> Equal(const Value& a, const Value& b) {
    MILLRACE_RETURN_IF_ERROR(Charge(kNodeWork));
    if (a.number() && b.number()) return *a.number() == *b.number();
    if (a.is.index() != b.is.index()) return false;
    if (a.text() != nullptr) {
      MILLRACE_RETURN_IF_ERROR(Charge(std::min(a.text()->text.size(), b.text()->text.size())));
      return a.text()->text == b.text()->text;
    }
    if (a.list() != nullptr) {
      if (a.list()->size() != b.list()->size()) return false;
      for (size_t i = 0; i < a.list()->size(); ++i) {
        MILLRACE_ASSIGN_OR_RETURN(const bool equal, Equal((*a.list())[i], (*b.list())[i]));
        if (!equal) return false;
      }
      return true;
    }
    if (a.dict() != nullptr) {
      if (a.dict()->size() != b.dict()->size()) return false;
      for (const auto& [key, value] : *a.dict()) {
        const Value* other = Find(*b.dict(), key);
        if (other == nullptr) return false;
        MILLRACE_ASSIGN_OR_RETURN(const bool equal, Equal(value, *other));
        if (!equal) return false;
      }
      return true;
    }
    return a.space() == b.space();
  }

  absl::StatusOr<bool> In(const Value& item, const Value& container) {
    if (container.text() != nullptr) {
      if (item.text() == nullptr) return Wrong(absl::StrCat("'in' a string is asked of ", item.kind()));
      MILLRACE_RETURN_IF_ERROR(Charge(container.text()->text.size()));
      return absl::StrContains(container.text()->text, item.text()->text);
    }
    if (container.dict() != nullptr)
      return item.text() != nullptr && Find(*container.dict(), item.text()->text) != nullptr;
    if (container.undefined()) return false;
    if (container.list() == nullptr) return Wrong(absl::StrCat("'in' is asked of ", container.kind()));
    for (const Value& one : *container.list()) {
      MILLRACE_ASSIGN_OR_RETURN(const bool equal, Equal(item, one));
      if (equal) return true;
    }
    return false;
  }

  absl::StatusOr<Value> Compare(const std::string& op, const Value& a, const Value& b) {
    if (op == "==" || op == "!=") {
      MILLRACE_ASSIGN_OR_RETURN(const bool equal, Equal(a, b));
      return Value{equal == (op == "==")};
    }
    if (op == "in" || op == "not in") {
      MILLRACE_ASSIGN_OR_RETURN(const bool in, In(a, b));
      return Value{in == (op == "in")};
    }
    int order = 0;
    if (a.number() && b.number()) {
      order = *a.number() < *b.number() ? -1 : *a.number() > *b.number();
    } else if (a.text() != nullptr && b.text() != nullptr) {
      // The order of UTF-8 is that of its characters.
      order = a.text()->text.compare(b.text()->text);
    } else {
      return Wrong(absl::StrCat("'", op, "' between ", a.kind(), " and ", b.kind()));
    }
    const bool holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
    return Value{holds};
  }

  absl::StatusOr<Value> Combine(const std::string& op, const Value& a, const Value& b) {
    if (op == "~" || (op == "+" && a.text() != nullptr && b.text() != nullptr)) {
      MILLRACE_ASSIGN_OR_RETURN(MarkedText joined, AsText(a));
      MILLRACE_ASSIGN_OR_RETURN(const MarkedText right, AsText(b));
      joined.Append(right);
      return Text(std::move(joined));
    }
    if (op == "+" && a.list() != nullptr && b.list() != nullptr) {
      List joined = *a.list();
      joined.insert(joined.end(), b.list()->begin(), b.list()->end());
      return Listed(std::move(joined));
    }
    if (op == "*" && a.text() != nullptr && b.number()) {
      const auto times = static_cast<uint64_t>(std::max<int64_t>(*b.number(), 0));
      const uint64_t size = a.text()->text.size();
      if (size > 0 && times > work_ / size) return Charge(work_ + 1);
      MarkedText repeated;
      for (uint64_t i = 0; size > 0 && i < times; ++i) repeated.Append(*a.text());
      return Text(std::move(repeated));
    }
    if (!a.number() || !b.number()) return Wrong(absl::StrCat("'", op, "' between ", a.kind(), " and ", b.kind()));
    const int64_t x = *a.number(), y = *b.number();
    int64_t result = 0;
    bool overflow = false;
    if (op == "+") overflow = __builtin_add_overflow(x, y, &result);
    if (op == "-") overflow = __builtin_sub_overflow(x, y, &result);
    if (op == "*") overflow = __builtin_mul_overflow(x, y, &result);
    if (op == "//" || op == "%") {
      if (y == 0) return Wrong("division by zero");
      overflow = x == std::numeric_limits<int64_t>::min() && y == -1;
      if (!overflow) result = op == "//" ? FloorDivide(x, y) : x - y * FloorDivide(x, y);
    }
    if (overflow) return Wrong("a number is too large");
    return Value{result};
  }

  // Expressions.

  absl::StatusOr<Value> Evaluate(const Expression& expression) {
    MILLRACE_RETURN_IF_ERROR(Charge(kNodeWork));
    absl::StatusOr<Value> value = EvaluateKind(expression);
    if (!value.ok()) return At(expression.line, value.status());
    return value;
  }

  absl::StatusOr<List> EvaluateAll(const Expression& expression, size_t first) {
    List values;
    for (size_t i = first; i < expression.children.size(); ++i) {
      const ExpressionPtr& child = expression.children[i];
      if (child == nullptr) {
        values.push_back({None()});
        continue;
      }
      MILLRACE_ASSIGN_OR_RETURN(Value value, Evaluate(*child));
      values.push_back(std::move(value));
    }
    return values;
  }

  absl::StatusOr<Value> EvaluateKind(const Expression& expression) {
    const std::vector<ExpressionPtr>& children = expression.children;
    switch (expression.kind) {
      case Kind::kString:
        return Text(Plain(expression.text));
      case Kind::kNumber:
        return Value{expression.number};
      case Kind::kTrue:
        return Value{true};
      case Kind::kFalse:
        return Value{false};
      case Kind::kNone:
        return Value{None()};
      case Kind::kName:
        return Look(expression.text);
      case Kind::kList: {
        MILLRACE_ASSIGN_OR_RETURN(List items, EvaluateAll(expression, 0));
        return Listed(std::move(items));
      }
      case Kind::kDict: {
        MILLRACE_ASSIGN_OR_RETURN(List items, EvaluateAll(expression, 0));
        Dict dict;
        Value value;
        for (size_t i = 0; i + 1 < items.size(); i += 2) {
          if (items[i].text() == nullptr) return Wrong("a key of a dict is no string");
          MILLRACE_RETURN_IF_ERROR(Deepen(items[i + 1], &value));
          Assign(items[i].text()->text, items[i + 1], &dict);
        }
        value.is = std::make_shared<const Dict>(std::move(dict));
        return value;
      }
      case Kind::kOr:
      case Kind::kAnd: {
        MILLRACE_ASSIGN_OR_RETURN(Value left, Evaluate(*children[0]));
        if (left.truth() == (expression.kind == Kind::kOr)) return left;
        return Evaluate(*children[1]);
      }
      case Kind::kBinary:
      case Kind::kCompare: {
        MILLRACE_ASSIGN_OR_RETURN(const Value left, Evaluate(*children[0]));
        MILLRACE_ASSIGN_OR_RETURN(const Value right, Evaluate(*children[1]));
        return expression.kind == Kind::kBinary ? Combine(expression.text, left, right)
                                                : Compare(expression.text, left, right);
      }
      case Kind::kNot: {
        MILLRACE_ASSIGN_OR_RETURN(const Value value, Evaluate(*children[0]));
        return Value{!value.truth()};
      }
      case Kind::kNegative: {
        MILLRACE_ASSIGN_OR_RETURN(const Value value, Evaluate(*children[0]));
        return Combine("-", Value{int64_t{0}}, value);
      }
      case Kind::kConditional: {
        MILLRACE_ASSIGN_OR_RETURN(const Value condition, Evaluate(*children[1]));
        if (condition.truth()) return Evaluate(*children[0]);
        if (children[2] == nullptr) return Value{Undefined{"the value without an else"}};
        return Evaluate(*children[2]);
      }
      case Kind::kMember: {
        MILLRACE_ASSIGN_OR_RETURN(const Value object, Evaluate(*children[0]));
        return Member(object, expression.text);
      }
      case Kind::kIndex: {
        MILLRACE_ASSIGN_OR_RETURN(const Value object, Evaluate(*children[0]));
        MILLRACE_ASSIGN_OR_RETURN(const Value index, Evaluate(*children[1]));
        return Index(object, index);
      }
      case Kind::kSlice:
        return Slice(expression);
      case Kind::kCall:
        return Call(expression);
      case Kind::kFilter:
        return Filter(expression);
      case Kind::kTest:
        return Test(expression);
    }
    return absl::InternalError("an unknown expression");
  }

  static absl::StatusOr<Value> Member(const Value& object, const std::string& name) {
    if (object.undefined()) return Wrong(absl::StrCat("'", std::get<Undefined>(object.is).name, "' is undefined"));
    const Dict* dict = object.space() != nullptr ? &object.space()->variables : object.dict();
    const Value* value = dict == nullptr ? nullptr : Find(*dict, name);
    return value == nullptr ? Value{Undefined{name}} : *value;
  }

  absl::StatusOr<Value> Index(const Value& object, const Value& index) {
    if (index.text() != nullptr) return Member(object, index.text()->text);
    if (object.undefined()) return Member(object, "");
    if (!index.number()) return Value{Undefined{"an element"}};
    int64_t at = *index.number();
    if (object.list() != nullptr) {
      const auto size = static_cast<int64_t>(object.list()->size());
      if (at < 0) at += size;
      return at < 0 || at >= size ? Value{Undefined{"an element"}} : (*object.list())[static_cast<size_t>(at)];
    }
    if (object.text() == nullptr) return Value{Undefined{"an element"}};
    MILLRACE_RETURN_IF_ERROR(Charge(object.text()->text.size()));
    const std::vector<size_t> offsets = Offsets(*object.text());
    const auto size = static_cast<int64_t>(offsets.size()) - 1;
    if (at < 0) at += size;
    if (at < 0 || at >= size) return Value{Undefined{"a character"}};
    const size_t begin = offsets[static_cast<size_t>(at)];
    return Value::Text(object.text()->Part(begin, offsets[static_cast<size_t>(at) + 1] - begin));
  }

  absl::StatusOr<Value> Slice(const Expression& expression) {
    MILLRACE_ASSIGN_OR_RETURN(const List parts, EvaluateAll(expression, 0));
    for (size_t i = 1; i < 4; ++i) {
      if (!parts[i].none() && !parts[i].number()) return Wrong(absl::StrCat("a slice by ", parts[i].kind()));
    }
    const int64_t step = parts[3].number().value_or(1);
    if (step == 0) return Wrong("a slice with step 0");
    if (const List* list = parts[0].list()) {
      List chosen;
      for (const size_t i : SliceIndices(list->size(), parts[1].number(), parts[2].number(), step))
        chosen.push_back((*list)[i]);
      return Listed(std::move(chosen));
    }
    const MarkedText* text = parts[0].text();
    if (text == nullptr) return Wrong(absl::StrCat("a slice of ", parts[0].kind()));
    MILLRACE_RETURN_IF_ERROR(Charge(text->text.size()));
    const std::vector<size_t> offsets = Offsets(*text);
    MarkedText chosen;
    for (const size_t i : SliceIndices(offsets.size() - 1, parts[1].number(), parts[2].number(), step))
      chosen.Append(text->Part(offsets[i], offsets[i + 1] - offsets[i]));
    return Text(std::move(chosen));
  }

  // Functions, methods, filters and tests.

  struct Arguments {
    List values;  // without names
    Dict named;
    absl::string_view function;

    // The argument at `place` or of the name; null if it is not given.
    const Value* Get(size_t place, absl::string_view name) const {
      return place < values.size() ? &values[place] : Find(named, name);
    }
    absl::StatusOr<std::string> GetText(size_t place, absl::string_view name) const {
      const Value* value = Get(place, name);
      if (value == nullptr || value->text() == nullptr)
        return Wrong(absl::StrCat(function, ": the argument '", name, "' is no string"));
      return value->text()->text;
    }
    absl::StatusOr<std::optional<int64_t>> GetNumber(size_t place, absl::string_view name) const {
      const Value* value = Get(place, name);
      if (value == nullptr || value->none()) return std::nullopt;
      if (!value->number()) return Wrong(absl::StrCat(function, ": the argument '", name, "' is no number"));
      return value->number();
    }
    absl::Status AtMost(size_t count) const {
      if (values.size() + named.size() <= count) return absl::OkStatus();
      return Wrong(absl::StrCat(function, " is given more than ", count, " arguments"));
    }
  };

  absl::StatusOr<Arguments> EvaluateArguments(const Expression& expression, absl::string_view function) {
    MILLRACE_ASSIGN_OR_RETURN(List values, EvaluateAll(expression, 1));
    Arguments arguments;
    arguments.function = function;
    const size_t unnamed = values.size() - expression.keywords.size();
    for (size_t i = unnamed; i < values.size(); ++i)
      Assign(expression.keywords[i - unnamed], std::move(values[i]), &arguments.named);
    values.resize(unnamed);
    arguments.values = std::move(values);
    return arguments;
  }

  absl::StatusOr<Value> Call(const Expression& expression) {
    const Expression& function = *expression.children[0];
    MILLRACE_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression, function.text));
    if (function.kind == Kind::kMember) {
      MILLRACE_ASSIGN_OR_RETURN(const Value object, Evaluate(*function.children[0]));
      if (object.text() != nullptr) return TextMethod(*object.text(), arguments);
      if (object.dict() != nullptr) return DictMethod(*object.dict(), arguments);
      return Wrong(absl::StrCat("the method '", function.text, "' of ", object.kind(), " is not supported"));
    }
    if (function.kind != Kind::kName) return Wrong("only names and methods can be called");
    if (function.text == "raise_exception") {
      const Value* message = arguments.Get(0, "message");
      return Wrong(absl::StrCat("the template says: ",
                                message != nullptr && message->text() != nullptr ? message->text()->text : ""));
    }
    if (function.text == "namespace") {
      if (!arguments.values.empty()) return Wrong("namespace takes arguments with names");
      auto space = std::make_shared<Namespace>();
      for (const auto& [name, value] : arguments.named) {
        if (value.space() != nullptr) return Wrong("a namespace cannot be kept in a namespace");
        space->variables.emplace_back(name, value);
      }
      return Value{std::move(space)};
    }
    if (function.text == "range") return Range(arguments);
    return Wrong(absl::StrCat("the function '", function.text, "' is not supported"));
  }

  absl::StatusOr<Value> Range(const Arguments& arguments) {
    MILLRACE_RETURN_IF_ERROR(arguments.AtMost(3));
    MILLRACE_ASSIGN_OR_RETURN(std::optional<int64_t> begin, arguments.GetNumber(0, "start"));
    MILLRACE_ASSIGN_OR_RETURN(std::optional<int64_t> end, arguments.GetNumber(1, "stop"));
    MILLRACE_ASSIGN_OR_RETURN(const std::optional<int64_t> step, arguments.GetNumber(2, "step"));
    if (arguments.values.size() < 2) end = std::exchange(begin, 0);
    constexpr int64_t kMost = 1 << 20;
    for (const int64_t bound : {begin.value_or(0), end.value_or(0), step.value_or(1)}) {
      if (bound < -kMost || bound > kMost) return Wrong("range goes beyond 2^20");
    }
    if (step.value_or(1) == 0) return Wrong("range with step 0");
    const int64_t stride = step.value_or(1);
    List numbers;
    for (int64_t i = begin.value_or(0); stride > 0 ? i < end.value_or(0) : i > end.value_or(0); i += stride) {
      MILLRACE_RETURN_IF_ERROR(Charge(kNodeWork));
      numbers.push_back({i});
    }
    return Listed(std::move(numbers));
  }

  absl::StatusOr<Value> TextMethod(const MarkedText& text, const Arguments& arguments) {
    const absl::string_view name = arguments.function;
    MILLRACE_RETURN_IF_ERROR(Charge(text.text.size()));
    if (name == "strip" || name == "lstrip" || name == "rstrip") {
      std::optional<std::string> characters;
      if (!arguments.values.empty()) {
        MILLRACE_ASSIGN_OR_RETURN(characters, arguments.GetText(0, "chars"));
      }
      return Text(Strip(text, name != "rstrip", name != "lstrip", characters));
    }
    if (name == "startswith" || name == "endswith") {
      MILLRACE_ASSIGN_OR_RETURN(const std::string part, arguments.GetText(0, "prefix"));
      return Value{name == "startswith" ? absl::StartsWith(text.text, part) : absl::EndsWith(text.text, part)};
    }
    if (name == "split") {
      std::optional<std::string> separator;
      if (const Value* given = arguments.Get(0, "sep"); given != nullptr && !given->none()) {
        MILLRACE_ASSIGN_OR_RETURN(separator, arguments.GetText(0, "sep"));
        if (separator->empty()) return Wrong("split at an empty string");
      }
      MILLRACE_ASSIGN_OR_RETURN(const std::optional<int64_t> limit, arguments.GetNumber(1, "maxsplit"));
      // Before the parts are made: there may be as many as bytes.
      MILLRACE_RETURN_IF_ERROR(Charge(text.text.size() * 8));
      List parts;
      for (MarkedText& part : jinja::Split(text, separator, limit.value_or(-1)))
        parts.push_back(Value::Text(std::move(part)));
      return Listed(std::move(parts));
    }
    MILLRACE_RETURN_IF_ERROR(arguments.AtMost(name == "replace" ? 3 : 0));
    return ChangeText(name, text, arguments, 0);
  }

  // What methods and filters of one name do alike; `first` is the place of the first argument.
  absl::StatusOr<Value> ChangeText(absl::string_view name, const MarkedText& text, const Arguments& arguments,
                                   size_t first) {
    MILLRACE_RETURN_IF_ERROR(Charge(text.text.size()));
    if (name == "upper") return Text(Upper(text));
    if (name == "lower") return Text(Lower(text));
    if (name == "title" || name == "capitalize") return Text(Capitalized(text, name == "title"));
    if (name != "replace") return Wrong(absl::StrCat("the method '", name, "' of a string is not supported"));
    MILLRACE_ASSIGN_OR_RETURN(const std::string old, arguments.GetText(first, "old"));
    MILLRACE_ASSIGN_OR_RETURN(const std::string with, arguments.GetText(first + 1, "new"));
    MILLRACE_ASSIGN_OR_RETURN(const std::optional<int64_t> limit, arguments.GetNumber(first + 2, "count"));
    if (old.empty()) return Wrong("replace of an empty string");
    MarkedText replaced;
    const std::vector<MarkedText> parts = jinja::Split(text, old, limit.value_or(-1));
    const uint64_t size = parts.size() * uint64_t{with.size()};
    MILLRACE_RETURN_IF_ERROR(Charge(size));
    const Value* given = arguments.Get(first + 1, "new");
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i > 0) replaced.Append(*given->text());
      replaced.Append(parts[i]);
    }
    return Text(std::move(replaced));
  }

  absl::StatusOr<Value> DictMethod(const Dict& dict, const Arguments& arguments) {
    const absl::string_view name = arguments.function;
    if (name == "get") {
      MILLRACE_ASSIGN_OR_RETURN(const std::string key, arguments.GetText(0, "key"));
      if (const Value* value = Find(dict, key)) return *value;
      const Value* otherwise = arguments.Get(1, "default");
      return otherwise == nullptr ? Value{None()} : *otherwise;
    }
    MILLRACE_RETURN_IF_ERROR(arguments.AtMost(0));
    if (name != "items" && name != "keys" && name != "values")
      return Wrong(absl::StrCat("the method '", name, "' of a dict is not supported"));
    List parts;
    for (const auto& [key, value] : dict) {
      if (name == "keys") parts.push_back(Value::Text(key));
      if (name == "values") parts.push_back(value);
      if (name != "items") continue;
      MILLRACE_ASSIGN_OR_RETURN(Value pair, Listed({Value::Text(key), value}));
      parts.push_back(std::move(pair));
    }
    return Listed(std::move(parts));
  }

  absl::StatusOr<Value> Filter(const Expression& expression) {
    const std::string& name = expression.text;
    MILLRACE_ASSIGN_OR_RETURN(const Value value, Evaluate(*expression.children[0]));
    MILLRACE_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression, name));
    if (name == "default" || name == "d") {
      const Value* also_false = arguments.Get(1, "boolean");
      const bool replace = value.undefined() || (also_false != nullptr && also_false->truth() && !value.truth());
      if (!replace) return value;
      const Value* otherwise = arguments.Get(0, "default_value");
      return otherwise == nullptr ? Value::Text("") : *otherwise;
    }
    if (name == "safe") return value;
    if (name == "length" || name == "count") {
      if (value.text() != nullptr) {
        MILLRACE_RETURN_IF_ERROR(Charge(value.text()->text.size()));
        return Value{Length(*value.text())};
      }
      if (value.list() != nullptr) return Value{static_cast<int64_t>(value.list()->size())};
      if (value.dict() != nullptr) return Value{static_cast<int64_t>(value.dict()->size())};
      if (value.undefined()) return Value{int64_t{0}};
      return Wrong(absl::StrCat("the length of ", value.kind()));
    }
    if (name == "tojson") {
      MILLRACE_ASSIGN_OR_RETURN(const std::optional<int64_t> indent, arguments.GetNumber(0, "indent"));
      if (indent.value_or(0) < 0 || indent.value_or(0) > 16) return Wrong("tojson: an indent of 0 to 16 is wanted");
      MarkedText json;
      MILLRACE_RETURN_IF_ERROR(ToJson(value, indent, 0, &json));
      return Value::Text(std::move(json));
    }
    if (name == "list" || name == "first" || name == "last" || name == "join" || name == "selectattr" ||
        name == "rejectattr" || name == "map") {
      MILLRACE_ASSIGN_OR_RETURN(List items, Items(value));
      return ListFilter(std::move(items), arguments);
    }
    if (name == "items") {
      if (value.undefined()) return Listed({});
      if (value.dict() == nullptr) return Wrong(absl::StrCat("the items of ", value.kind()));
      Arguments none;
      none.function = "items";
      return DictMethod(*value.dict(), none);
    }
    if (name == "int") {
      if (value.number()) return Value{*value.number()};
      int64_t number = 0;
      if (value.text() != nullptr && absl::SimpleAtoi(value.text()->text, &number)) return Value{number};
      const Value* otherwise = arguments.Get(0, "default");
      return otherwise == nullptr ? Value{int64_t{0}} : *otherwise;
    }
    MILLRACE_ASSIGN_OR_RETURN(const MarkedText text, AsText(value));
    if (name == "string") return Text(text);
    if (name == "trim") {
      std::optional<std::string> characters;
      if (const Value* given = arguments.Get(0, "chars"); given != nullptr && !given->none()) {
        MILLRACE_ASSIGN_OR_RETURN(characters, arguments.GetText(0, "chars"));
      }
      return Text(Strip(text, true, true, characters));
    }
    return ChangeText(name, text, arguments, 0);
  }

  absl::StatusOr<Value> ListFilter(List items, const Arguments& arguments) {
    const absl::string_view name = arguments.function;
    if (name == "list") return Listed(std::move(items));
    if (name == "first" || name == "last") {
      if (items.empty()) return Value{Undefined{"an element"}};
      return name == "first" ? items.front() : items.back();
    }
    if (name == "join") {
      MarkedText separator;
      if (const Value* given = arguments.Get(0, "d")) {
        MILLRACE_ASSIGN_OR_RETURN(separator, AsText(*given));
      }
      const Value* attribute = arguments.Get(1, "attribute");
      if (attribute != nullptr) return Wrong("join with an attribute is not supported");
      MarkedText joined;
      for (size_t i = 0; i < items.size(); ++i) {
        MILLRACE_ASSIGN_OR_RETURN(const MarkedText text, AsText(items[i]));
        MILLRACE_RETURN_IF_ERROR(Charge(separator.text.size() + text.text.size()));
        if (i > 0) joined.Append(separator);
        joined.Append(text);
      }
      return Value::Text(std::move(joined));
    }
    MILLRACE_ASSIGN_OR_RETURN(const std::string attribute, arguments.GetText(name == "map" ? 1 : 0, "attribute"));
    List chosen;
    for (Value& item : items) {
      MILLRACE_ASSIGN_OR_RETURN(Value value, Member(item, attribute));
      if (name == "map") {
        chosen.push_back(std::move(value));
        continue;
      }
      bool holds = value.truth();
      if (const Value* test = arguments.Get(1, "test")) {
        const std::string test_name = test->text() == nullptr ? "" : test->text()->text;
        const Value* operand = arguments.Get(2, "value");
        MILLRACE_ASSIGN_OR_RETURN(holds, Tests(test_name == "==" ? "equalto" : test_name, value, operand));
      }
      if (holds == (name == "selectattr")) chosen.push_back(std::move(item));
    }
    return Listed(std::move(chosen));
  }

  absl::StatusOr<Value> Test(const Expression& expression) {
    MILLRACE_ASSIGN_OR_RETURN(const Value value, Evaluate(*expression.children[0]));
    Value operand;
    if (expression.children.size() > 1) {
      MILLRACE_ASSIGN_OR_RETURN(operand, Evaluate(*expression.children[1]));
    }
    MILLRACE_ASSIGN_OR_RETURN(const bool holds,
                              Tests(expression.text, value, expression.children.size() > 1 ? &operand : nullptr));
    return Value{holds};
  }

  absl::StatusOr<bool> Tests(const std::string& name, const Value& value, const Value* operand) {
    if (name == "equalto" || name == "eq" || name == "ne" || name == "in") {
      if (operand == nullptr) return Wrong(absl::StrCat("the test '", name, "' needs a value"));
      if (name == "in") return In(value, *operand);
      MILLRACE_ASSIGN_OR_RETURN(const bool equal, Equal(value, *operand));
      return equal == (name != "ne");
    }
    const auto* truth = std::get_if<bool>(&value.is);
    if (name == "defined") return !value.undefined();
    if (name == "undefined") return value.undefined();
    if (name == "none") return value.none();
    if (name == "string") return value.text() != nullptr;
    if (name == "mapping") return value.dict() != nullptr;
    if (name == "sequence" || name == "iterable")
      return value.text() != nullptr || value.list() != nullptr || value.dict() != nullptr ||
             value.undefined();  // as Jinja has it
    if (name == "number") return value.number().has_value();
    if (name == "integer") return value.number().has_value() && truth == nullptr;
    if (name == "boolean") return truth != nullptr;
    if (name == "true" || name == "false") return truth != nullptr && *truth == (name == "true");
    if (name == "odd" || name == "even") {
      if (!value.number()) return Wrong(absl::StrCat("the test '", name, "' of ", value.kind()));
      return (*value.number() % 2 == 0) == (name == "even");
    }
    return Wrong(absl::StrCat("the test '", name, "' is not supported"));
  }

  // As json.dumps(value, ensure_ascii=False, indent=indent).
  absl::Status ToJson(const Value& value, std::optional<int64_t> indent, int level, MarkedText* json) {
    const size_t before = json->text.size();
    const auto line = [&](int at) {
      if (indent) json->Append(Plain("\n" + std::string(static_cast<size_t>(*indent) * static_cast<size_t>(at), ' ')));
    };
    const auto between = [&](bool first) {
      if (!first) json->Append(Plain(indent ? "," : ", "));
      line(level + 1);
    };
    MILLRACE_RETURN_IF_ERROR(Charge(kNodeWork));
    if (value.text() != nullptr) {
      MILLRACE_RETURN_IF_ERROR(Charge(value.text()->text.size() * 8));
      json->Append(Quoted(*value.text()));
    } else if (value.none()) {
      json->Append(Plain("null"));
    } else if (const auto* truth = std::get_if<bool>(&value.is)) {
      json->Append(Plain(*truth ? "true" : "false"));
    } else if (value.number()) {
      json->Append(Plain(absl::StrCat(*value.number())));
    } else if (const List* list = value.list()) {
      json->Append(Plain("["));
      for (size_t i = 0; i < list->size(); ++i) {
        between(i == 0);
        MILLRACE_RETURN_IF_ERROR(ToJson((*list)[i], indent, level + 1, json));
      }
      if (!list->empty()) line(level);
      json->Append(Plain("]"));
    } else if (const Dict* dict = value.dict()) {
      json->Append(Plain("{"));
      bool first = true;
      for (const auto& [key, inner] : *dict) {
        between(std::exchange(first, false));
        json->Append(Quoted(Plain(key)));
        json->Append(Plain(": "));
        MILLRACE_RETURN_IF_ERROR(ToJson(inner, indent, level + 1, json));
      }
      if (!dict->empty()) line(level);
      json->Append(Plain("}"));
    } else {
      return Wrong(absl::StrCat("tojson of ", value.kind()));
    }
    return level > 0 ? absl::OkStatus() : Charge(json->text.size() - before);
  }

  uint64_t work_;  // left
  const JinjaLimits limits_;
  const bool strict_;  // what is undefined is neither text nor a list
  std::vector<Dict> scopes_;
  JinjaOutput output_;
  int generating_ = 0;
};

absl::StatusOr<Value> FromJson(const nlohmann::ordered_json& json) {
  const auto deepen = [](const Value& inner, Value* outer) {
    outer->depth = std::max(outer->depth, inner.depth + 1);
    return outer->depth <= kMaxDepth;
  };
  Value value{None{}};
  if (json.is_string()) return Value::Text(json.get_ref<const std::string&>());
  if (json.is_boolean()) return Value{json.get<bool>()};
  if (json.is_number_integer() && !(json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX)) {
    return Value{json.get<int64_t>()};
  }
  if (json.is_number()) return Value::Text(json.dump());
  if (json.is_array()) {
    List items;
    for (const nlohmann::ordered_json& item : json) {
      MILLRACE_ASSIGN_OR_RETURN(Value made, FromJson(item));
      if (!deepen(made, &value)) return Wrong("lists are nested too deeply");
      items.push_back(std::move(made));
    }
    value.is = std::make_shared<const List>(std::move(items));
  } else if (json.is_object()) {
    Dict dict;
    for (const auto& [name, item] : json.items()) {
      MILLRACE_ASSIGN_OR_RETURN(Value made, FromJson(item));
      if (!deepen(made, &value)) return Wrong("objects are nested too deeply");
      dict.emplace_back(name, std::move(made));
    }
    value.is = std::make_shared<const Dict>(std::move(dict));
  }
  return value;
}

}  // namespace
}  // namespace jinja

JinjaTemplate::JinjaTemplate(std::unique_ptr<const jinja::Body> body) : body_(std::move(body)) {}
JinjaTemplate::JinjaTemplate(JinjaTemplate&&) noexcept = default;
JinjaTemplate& JinjaTemplate::operator=(JinjaTemplate&&) noexcept = default;
JinjaTemplate::~JinjaTemplate() = default;

absl::StatusOr<JinjaTemplate> JinjaTemplate::Parse(absl::string_view source) {
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<jinja::Body> body, jinja::ParseTemplate(source));
  return JinjaTemplate(std::move(body));
}

bool JinjaTemplate::has_generation() const { return body_->has_generation; }

absl::StatusOr<JinjaOutput> JinjaTemplate::Render(const Variables& variables, const JinjaLimits& limits) const {
  using jinja::Dict;
  using jinja::Value;
  jinja::List messages;
  for (const Fields& fields : variables.messages) {
    Dict message;
    for (const auto& [name, text] : fields) message.emplace_back(name, Value::Text(text));
    messages.push_back({std::make_shared<const Dict>(std::move(message)), 1});
  }
  Dict globals;
  if (variables.values != nullptr) {
    if (!variables.values->is_object()) return absl::InvalidArgumentError("a template's values are no object");
    for (const auto& [name, value] : variables.values->items()) {
      MILLRACE_ASSIGN_OR_RETURN(Value made, jinja::FromJson(value));
      globals.emplace_back(name, std::move(made));
    }
  }
  // Behind the values, which the first of a name is.
  globals.emplace_back("messages", Value{std::make_shared<const jinja::List>(std::move(messages)), 2});
  globals.emplace_back("add_generation_prompt", Value{variables.add_generation_prompt});
  for (const auto& [name, text] : variables.strings) globals.emplace_back(name, Value::Text(text));
  return jinja::Renderer(limits, variables.strict, std::move(globals)).Render(*body_);
}

}  // namespace millrace::text
