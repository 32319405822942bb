#include "text/jinja_syntax.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status.h"
#include "text/unicode.h"

namespace millrace::text::jinja {
namespace {

using Kind = Expression::Kind;

struct Token {
  enum class Type { kText, kBegin, kEnd, kName, kString, kNumber, kOperator, kFinish };
  Type type = Type::kFinish;
  std::string text;  // kBegin and kEnd: "{{" or "{%"
  int line = 1;
};

absl::Status Wrong(int line, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", what));
}

bool IsSpace(char c) { return absl::ascii_isspace(static_cast<unsigned char>(c)); }
bool IsNameStart(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsDigit(char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); }

// Cuts the source into tokens, white space around tags dealt with.
class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) {
      const size_t tag = FindTag();
      const char kind = tag < source_.size() ? source_[tag + 1] : '\0';
      const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
      AddText(tag, kind, sign);
      if (tag >= source_.size()) break;
      at_ = tag + 2 + (sign == '-' || (sign == '+' && kind != '{') ? 1 : 0);
      if (kind == '#') {
        const size_t end = source_.find("#}", at_);
        if (end == std::string::npos) return Wrong(line_, "a comment does not end");
        Count(at_, end);
        strip_ = end > at_ && source_[end - 1] == '-';
        at_ = end + 2;
        if (!strip_) DropNewline();
        continue;
      }
      MILLRACE_RETURN_IF_ERROR(Tag(kind));
    }
    Add(Token::Type::kFinish, "");
    return std::move(tokens_);
  }

 private:
  void Add(Token::Type type, absl::string_view text) { tokens_.push_back({type, std::string(text), line_}); }
  void Count(size_t begin, size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(begin),
                                         source_.begin() + static_cast<ptrdiff_t>(end), '\n'));
  }
  // trim_blocks
  void DropNewline() {
    if (at_ < source_.size() && source_[at_] == '\n') {
      ++at_;
      ++line_;
    }
  }

  size_t FindTag() const {
    for (size_t at = source_.find('{', at_); at != std::string::npos; at = source_.find('{', at + 1)) {
      if (at + 1 < source_.size() && (source_[at + 1] == '{' || source_[at + 1] == '%' || source_[at + 1] == '#'))
        return at;
    }
    return source_.size();
  }

  void AddText(size_t end, char kind, char sign) {
    size_t begin = at_, last = end;
    if (strip_) {
      while (begin < end && IsSpace(source_[begin])) ++begin;
    }
    if (sign == '-' && kind != '\0') {
      while (last > begin && IsSpace(source_[last - 1])) --last;
    } else if ((kind == '%' || kind == '#') && sign != '+') {
      // lstrip_blocks: blanks between the start of the line and a block.
      size_t blank = last;
      while (blank > at_ && (source_[blank - 1] == ' ' || source_[blank - 1] == '\t')) --blank;
      if (blank == 0 || source_[blank - 1] == '\n') last = std::max(begin, blank);
    }
    if (last > begin) Add(Token::Type::kText, absl::string_view(source_).substr(begin, last - begin));
    strip_ = false;
    Count(at_, end);
  }

  absl::Status Tag(char kind) {
    const bool block = kind == '%';
    Add(Token::Type::kBegin, block ? "{%" : "{{");
    const std::string end = block ? "%}" : "}}";
    int open = 0;  // brackets: a dict's }} ends no print
    for (;;) {
      while (at_ < source_.size() && IsSpace(source_[at_])) {
        Count(at_, at_ + 1);
        ++at_;
      }
      if (at_ >= source_.size()) return Wrong(line_, absl::StrCat("a tag does not end with ", end));
      const bool minus = source_.compare(at_, 3, "-" + end) == 0;
      const bool plus = block && source_.compare(at_, 3, "+" + end) == 0;
      if (open == 0 && (minus || plus || source_.compare(at_, 2, end) == 0)) {
        Add(Token::Type::kEnd, block ? "{%" : "{{");
        at_ += minus || plus ? 3 : 2;
        strip_ = minus;
        if (block && !minus && !plus) DropNewline();
        return absl::OkStatus();
      }
      const char c = source_[at_];
      const size_t begin = at_;
      if (IsNameStart(c)) {
        while (at_ < source_.size() && (IsNameStart(source_[at_]) || IsDigit(source_[at_]))) ++at_;
        Add(Token::Type::kName, absl::string_view(source_).substr(begin, at_ - begin));
      } else if (IsDigit(c)) {
        while (at_ < source_.size() && IsDigit(source_[at_])) ++at_;
        if (at_ + 1 < source_.size() && source_[at_] == '.' && IsDigit(source_[at_ + 1]))
          return Wrong(line_, "numbers with a fraction are not supported");
        Add(Token::Type::kNumber, absl::string_view(source_).substr(begin, at_ - begin));
      } else if (c == '"' || c == '\'') {
        MILLRACE_RETURN_IF_ERROR(String(c));
      } else {
        size_t size = 1;
        for (const absl::string_view two : {"==", "!=", "<=", ">=", "//", "**"}) {
          if (absl::string_view(source_).substr(at_, 2) == two) size = 2;
        }
        const absl::string_view text = absl::string_view(source_).substr(at_, size);
        if (size == 1 && absl::string_view("+-*/%~|.,:()[]{}<>=").find(c) == absl::string_view::npos)
          return Wrong(line_, absl::StrCat("the character '", text, "' has no meaning"));
        if (c == '(' || c == '[' || c == '{') ++open;
        if (c == ')' || c == ']' || c == '}') --open;
        if (open < 0) return Wrong(line_, absl::StrCat("'", text, "' closes nothing"));
        Add(Token::Type::kOperator, text);
        at_ += size;
      }
    }
  }

  absl::Status String(char quote) {
    std::string text;
    for (++at_; at_ < source_.size() && source_[at_] != quote; ++at_) {
      const char c = source_[at_];
      if (c == '\n') ++line_;
      if (c != '\\' || at_ + 1 >= source_.size()) {
        text += c;
        continue;
      }
      const char escaped = source_[++at_];
      constexpr absl::string_view kNames("ntrbfav0\\'\"", 11), kValues("\n\t\r\b\f\a\v\0\\'\"", 11);
      if (const size_t name = kNames.find(escaped); name != absl::string_view::npos) {
        text += kValues[name];
      } else if (escaped == 'u' || escaped == 'x') {
        const size_t digits = escaped == 'u' ? 4 : 2;
        uint32_t code = 0;
        if (!absl::SimpleHexAtoi(source_.substr(at_ + 1, digits), &code) || at_ + digits >= source_.size() ||
            (code >= 0xD800 && code < 0xE000)) {
          return Wrong(line_, "a string has a broken escape");
        }
        AppendUtf8(code, &text);
        at_ += digits;
      } else {
        text += '\\';
        text += escaped;
      }
    }
    if (at_ >= source_.size()) return Wrong(line_, "a string does not end");
    ++at_;
    Add(Token::Type::kString, text);
    return absl::OkStatus();
  }

  const std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool strip_ = false;  // the tag before ended with -
  std::vector<Token> tokens_;
};

constexpr std::initializer_list<absl::string_view> kFilters = {
    "trim", "length", "count", "tojson", "upper", "lower",   "title",      "capitalize", "default", "d",     "join",
    "list", "first",  "last",  "string", "int",   "replace", "selectattr", "rejectattr", "map",     "items", "safe"};
constexpr std::initializer_list<absl::string_view> kTests = {
    "defined", "undefined", "none",  "string", "mapping", "iterable", "sequence", "number", "integer",
    "boolean", "true",      "false", "odd",    "even",    "equalto",  "eq",       "ne",     "in"};
constexpr std::initializer_list<absl::string_view> kTestsWithArgument = {"equalto", "eq", "ne", "in"};

bool Contains(std::initializer_list<absl::string_view> names, absl::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  absl::StatusOr<std::unique_ptr<Body>> Run() {
    auto body = std::make_unique<Body>();
    MILLRACE_ASSIGN_OR_RETURN(const std::string end, ParseBody({}, body.get()));
    return body;
  }

 private:
  const Token& Now() const { return tokens_[at_]; }
  bool IsOperator(absl::string_view text) const { return Now().type == Token::Type::kOperator && Now().text == text; }
  bool IsName(absl::string_view text) const { return Now().type == Token::Type::kName && Now().text == text; }
  bool Take(absl::string_view text) {
    if (!IsOperator(text) && !IsName(text)) return false;
    ++at_;
    return true;
  }
  absl::Status Expect(absl::string_view text) {
    if (Take(text)) return absl::OkStatus();
    return Wrong(Now().line, absl::StrCat("'", text, "' is wanted, not ", Shown()));
  }
  absl::Status ExpectEnd() {
    if (Now().type != Token::Type::kEnd) return Wrong(Now().line, absl::StrCat("the tag goes on with ", Shown()));
    ++at_;
    return absl::OkStatus();
  }
  std::string Shown() const {
    if (Now().type == Token::Type::kEnd) return "the end of the tag";
    return Now().type == Token::Type::kFinish ? "the end of the template"
                                              : absl::StrCat("'", Now().text.substr(0, 40), "'");
  }
  absl::StatusOr<std::string> Name() {
    if (Now().type != Token::Type::kName) return Wrong(Now().line, absl::StrCat("a name is wanted, not ", Shown()));
    return tokens_[at_++].text;
  }

  ExpressionPtr Make(Kind kind, std::string text = "") const {
    auto made = std::make_unique<Expression>();
    made->kind = kind;
    made->text = std::move(text);
    made->line = Now().line;
    return made;
  }
  static absl::Status Adopt(Expression* parent, ExpressionPtr child) {
    if (child != nullptr) parent->height = std::max(parent->height, child->height + 1);
    parent->children.push_back(std::move(child));
    if (parent->height > kMaxHeight) return Wrong(parent->line, "an expression is nested too deeply");
    return absl::OkStatus();
  }

  // Parses up to a block tag that `ends` names, whose name is taken and returned; to the end of the template if there
  // are none.
  absl::StatusOr<std::string> ParseBody(std::initializer_list<absl::string_view> ends, Body* body) {
    if (++blocks_ > kMaxHeight) return Wrong(Now().line, "blocks are nested too deeply");
    for (;;) {
      const Token& token = Now();
      if (token.type == Token::Type::kFinish) {
        if (ends.size() > 0) return Wrong(token.line, absl::StrCat("the template ends before ", *(ends.end() - 1)));
        break;
      }
      ++at_;
      Statement statement;
      statement.line = token.line;
      if (token.type == Token::Type::kText) {
        statement.text = token.text;
      } else if (token.text == "{{") {
        statement.kind = Statement::Kind::kPrint;
        MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr printed, ParseExpression());
        statement.expressions.push_back(std::move(printed));
        MILLRACE_RETURN_IF_ERROR(ExpectEnd());
      } else {
        MILLRACE_ASSIGN_OR_RETURN(const std::string name, Name());
        if (Contains(ends, name)) {
          --blocks_;
          return name;
        }
        MILLRACE_RETURN_IF_ERROR(ParseBlock(name, &statement));
      }
      for (const Body& inner : statement.bodies) body->has_generation |= inner.has_generation;
      body->has_generation |= statement.kind == Statement::Kind::kGeneration;
      body->statements.push_back(std::move(statement));
    }
    --blocks_;
    return "";
  }

  absl::Status ParseBlock(const std::string& name, Statement* statement) {
    if (name == "for") return ParseFor(statement);
    if (name == "if") return ParseIf(statement);
    if (name == "set") return ParseSet(statement);
    if (name == "generation") {
      statement->kind = Statement::Kind::kGeneration;
      MILLRACE_RETURN_IF_ERROR(ExpectEnd());
      return ParseLast("endgeneration", statement);
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) return Wrong(statement->line, absl::StrCat("'", name, "' outside of a loop"));
      statement->kind = name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue;
      return ExpectEnd();
    }
    return Wrong(statement->line, absl::StrCat("the block '", name, "' is not supported here"));
  }

  absl::Status ParseLast(absl::string_view end, Statement* statement) {
    MILLRACE_ASSIGN_OR_RETURN(const std::string found, ParseBody({end}, &statement->bodies.emplace_back()));
    return ExpectEnd();
  }

  absl::Status ParseIf(Statement* statement) {
    statement->kind = Statement::Kind::kIf;
    for (std::string name = "if"; name == "if" || name == "elif";) {
      MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr condition, ParseExpression());
      statement->expressions.push_back(std::move(condition));
      MILLRACE_RETURN_IF_ERROR(ExpectEnd());
      MILLRACE_ASSIGN_OR_RETURN(name, ParseBody({"elif", "else", "endif"}, &statement->bodies.emplace_back()));
      if (name == "else") {
        MILLRACE_RETURN_IF_ERROR(ExpectEnd());
        return ParseLast("endif", statement);
      }
    }
    return ExpectEnd();
  }

  absl::Status ParseFor(Statement* statement) {
    statement->kind = Statement::Kind::kFor;
    do {
      MILLRACE_ASSIGN_OR_RETURN(std::string name, Name());
      statement->names.push_back(std::move(name));
    } while (Take(","));
    MILLRACE_RETURN_IF_ERROR(Expect("in"));
    // Not a conditional expression: "if" filters the loop.
    MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr over, ParseOr());
    statement->expressions.push_back(std::move(over));
    ExpressionPtr condition;
    if (Take("if")) {
      MILLRACE_ASSIGN_OR_RETURN(condition, ParseExpression());
    }
    statement->expressions.push_back(std::move(condition));
    if (IsName("recursive")) return Wrong(Now().line, "recursive loops are not supported");
    MILLRACE_RETURN_IF_ERROR(ExpectEnd());
    ++loops_;
    MILLRACE_ASSIGN_OR_RETURN(const std::string end, ParseBody({"else", "endfor"}, &statement->bodies.emplace_back()));
    --loops_;
    MILLRACE_RETURN_IF_ERROR(ExpectEnd());
    return end == "else" ? ParseLast("endfor", statement) : absl::OkStatus();
  }

  absl::Status ParseSet(Statement* statement) {
    statement->kind = Statement::Kind::kSet;
    MILLRACE_ASSIGN_OR_RETURN(std::string name, Name());
    statement->names.push_back(std::move(name));
    if (Take(".")) {
      MILLRACE_ASSIGN_OR_RETURN(name, Name());
      statement->names.push_back(std::move(name));
    }
    if (Take("=")) {
      MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
      statement->expressions.push_back(std::move(value));
      return ExpectEnd();
    }
    MILLRACE_RETURN_IF_ERROR(ExpectEnd());
    return ParseLast("endset", statement);
  }

  absl::StatusOr<ExpressionPtr> ParseExpression() {
    if (++depth_ > kMaxHeight) return Wrong(Now().line, "an expression is nested too deeply");
    MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr left, ParseOr());
    while (Take("if")) {
      ExpressionPtr made = Make(Kind::kConditional);
      MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(left)));
      MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr condition, ParseOr());
      MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(condition)));
      ExpressionPtr otherwise;
      if (Take("else")) {
        MILLRACE_ASSIGN_OR_RETURN(otherwise, ParseExpression());
      }
      MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(otherwise)));
      left = std::move(made);
    }
    --depth_;
    return left;
  }

  using Rule = absl::StatusOr<ExpressionPtr> (Parser::*)();

  // left (operator right)*
  absl::StatusOr<ExpressionPtr> ParseChain(Rule rule, std::initializer_list<absl::string_view> operators, Kind kind) {
    MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr left, (this->*rule)());
    while ((Now().type == Token::Type::kOperator || Now().type == Token::Type::kName) &&
           Contains(operators, Now().text)) {
      ExpressionPtr made = Make(kind, Now().text);
      ++at_;
      MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr right, (this->*rule)());
      MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(left)));
      MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(right)));
      left = std::move(made);
    }
    return left;
  }

  absl::StatusOr<ExpressionPtr> ParseOr() { return ParseChain(&Parser::ParseAnd, {"or"}, Kind::kOr); }
  absl::StatusOr<ExpressionPtr> ParseAnd() { return ParseChain(&Parser::ParseNot, {"and"}, Kind::kAnd); }
  absl::StatusOr<ExpressionPtr> ParseNot() {
    if (!IsName("not")) return ParseCompare();
    if (++depth_ > kMaxHeight) return Wrong(Now().line, "an expression is nested too deeply");
    ExpressionPtr made = Make(Kind::kNot);
    ++at_;
    MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr inner, ParseNot());
    MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(inner)));
    --depth_;
    return made;
  }
  absl::StatusOr<ExpressionPtr> ParseCompare() {
    MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr left, ParseSum());
    bool chained = false;
    for (;;) {
      std::string text;
      for (const absl::string_view known : {"==", "!=", "<", "<=", ">", ">=", "in"}) {
        if (IsOperator(known) || (known == "in" && IsName(known))) text = std::string(known);
      }
      if (IsName("not") && tokens_[at_ + 1].type == Token::Type::kName && tokens_[at_ + 1].text == "in")
        text = "not in";
      if (text.empty()) return left;
      if (std::exchange(chained, true)) return Wrong(Now().line, "chained comparisons are not supported");
      ExpressionPtr made = Make(Kind::kCompare, text);
      at_ += text == "not in" ? 2 : 1;
      MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr right, ParseSum());
      MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(left)));
      MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(right)));
      left = std::move(made);
    }
  }
  absl::StatusOr<ExpressionPtr> ParseSum() { return ParseChain(&Parser::ParseConcat, {"+", "-"}, Kind::kBinary); }
  absl::StatusOr<ExpressionPtr> ParseConcat() { return ParseChain(&Parser::ParseProduct, {"~"}, Kind::kBinary); }
  absl::StatusOr<ExpressionPtr> ParseProduct() {
    return ParseChain(&Parser::ParseFiltered, {"*", "//", "%"}, Kind::kBinary);
  }

  // A unary expression with its filters and tests.
  absl::StatusOr<ExpressionPtr> ParseFiltered() {
    MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr value, ParseUnary());
    for (;;) {
      if (IsOperator("|")) {
        ExpressionPtr made = Make(Kind::kFilter);
        ++at_;
        MILLRACE_ASSIGN_OR_RETURN(made->text, Name());
        if (!Contains(kFilters, made->text))
          return Wrong(made->line, absl::StrCat("the filter '", made->text, "' is not supported"));
        MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(value)));
        if (Take("(")) MILLRACE_RETURN_IF_ERROR(ParseArguments(made.get()));
        value = std::move(made);
      } else if (IsName("is")) {
        ExpressionPtr made = Make(Kind::kTest);
        ++at_;
        const bool negated = Take("not");
        MILLRACE_ASSIGN_OR_RETURN(made->text, TestName());
        MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(value)));
        if (Contains(kTestsWithArgument, made->text)) {
          const bool parentheses = Take("(");
          absl::StatusOr<ExpressionPtr> argument = parentheses ? ParseExpression() : ParseUnary();
          MILLRACE_RETURN_IF_ERROR(argument.status());
          MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), *std::move(argument)));
          if (parentheses) MILLRACE_RETURN_IF_ERROR(Expect(")"));
        }
        value = std::move(made);
        if (negated) {
          made = Make(Kind::kNot);
          MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(value)));
          value = std::move(made);
        }
      } else {
        return value;
      }
    }
  }

  absl::StatusOr<std::string> TestName() {
    if (Take("==")) return "equalto";
    MILLRACE_ASSIGN_OR_RETURN(std::string name, Name());
    if (name == "None" || name == "True" || name == "False") name = absl::AsciiStrToLower(name);
    if (!Contains(kTests, name)) return Wrong(Now().line, absl::StrCat("the test '", name, "' is not supported"));
    return name;
  }

  absl::StatusOr<ExpressionPtr> ParseUnary() {
    if (IsOperator("-")) {
      if (++depth_ > kMaxHeight) return Wrong(Now().line, "an expression is nested too deeply");
      ExpressionPtr made = Make(Kind::kNegative);
      ++at_;
      MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr inner, ParseUnary());
      MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(inner)));
      --depth_;
      return made;
    }
    MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr value, ParsePrimary());
    for (;;) {
      if (IsOperator(".")) {
        ExpressionPtr made = Make(Kind::kMember);
        ++at_;
        MILLRACE_ASSIGN_OR_RETURN(made->text, Name());
        MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(value)));
        value = std::move(made);
      } else if (IsOperator("[")) {
        MILLRACE_ASSIGN_OR_RETURN(value, ParseSubscript(std::move(value)));
      } else if (IsOperator("(")) {
        ExpressionPtr made = Make(Kind::kCall);
        ++at_;
        MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(value)));
        MILLRACE_RETURN_IF_ERROR(ParseArguments(made.get()));
        value = std::move(made);
      } else {
        return value;
      }
    }
  }

  absl::StatusOr<ExpressionPtr> ParseSubscript(ExpressionPtr value) {
    ExpressionPtr made = Make(Kind::kIndex);
    ++at_;
    MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(value)));
    ExpressionPtr parts[3];
    int part = 0;
    while (!IsOperator("]")) {
      if (Take(":")) {
        made->kind = Kind::kSlice;
        if (++part > 2) return Wrong(Now().line, "a slice has more than three parts");
        continue;
      }
      if (parts[part] != nullptr) return Wrong(Now().line, absl::StrCat("']' is wanted, not ", Shown()));
      MILLRACE_ASSIGN_OR_RETURN(parts[part], ParseExpression());
    }
    ++at_;
    if (made->kind == Kind::kIndex && parts[0] == nullptr) return Wrong(Now().line, "an index is missing");
    for (int i = 0; i < (made->kind == Kind::kIndex ? 1 : 3); ++i)
      MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(parts[i])));
    return made;
  }

  // After "(", up to and with ")".
  absl::Status ParseArguments(Expression* call) {
    while (!Take(")")) {
      if (Now().type == Token::Type::kName && tokens_[at_ + 1].type == Token::Type::kOperator &&
          tokens_[at_ + 1].text == "=") {
        call->keywords.push_back(Now().text);
        at_ += 2;
      } else if (!call->keywords.empty()) {
        return Wrong(Now().line, "an argument without a name follows one with a name");
      }
      MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr argument, ParseExpression());
      MILLRACE_RETURN_IF_ERROR(Adopt(call, std::move(argument)));
      if (!IsOperator(")")) MILLRACE_RETURN_IF_ERROR(Expect(","));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<ExpressionPtr> ParsePrimary() {
    const Token& token = Now();
    if (token.type == Token::Type::kString) {
      ExpressionPtr made = Make(Kind::kString);
      for (; Now().type == Token::Type::kString; ++at_) made->text += Now().text;
      return made;
    }
    if (token.type == Token::Type::kNumber) {
      ExpressionPtr made = Make(Kind::kNumber);
      if (!absl::SimpleAtoi(token.text, &made->number)) return Wrong(token.line, "a number is too large");
      ++at_;
      return made;
    }
    if (token.type == Token::Type::kName) {
      Kind kind = Kind::kName;
      if (token.text == "true" || token.text == "True") kind = Kind::kTrue;
      if (token.text == "false" || token.text == "False") kind = Kind::kFalse;
      if (token.text == "none" || token.text == "None") kind = Kind::kNone;
      ExpressionPtr made = Make(kind, token.text);
      ++at_;
      return made;
    }
    if (Take("(")) {
      MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr inner, ParseExpression());
      MILLRACE_RETURN_IF_ERROR(Expect(")"));
      return inner;
    }
    if (IsOperator("[") || IsOperator("{")) {
      const bool dict = IsOperator("{");
      const absl::string_view close = dict ? "}" : "]";
      ExpressionPtr made = Make(dict ? Kind::kDict : Kind::kList);
      ++at_;
      while (!Take(close)) {
        MILLRACE_ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
        MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(item)));
        if (dict) {
          MILLRACE_RETURN_IF_ERROR(Expect(":"));
          MILLRACE_ASSIGN_OR_RETURN(item, ParseExpression());
          MILLRACE_RETURN_IF_ERROR(Adopt(made.get(), std::move(item)));
        }
        if (!IsOperator(close)) MILLRACE_RETURN_IF_ERROR(Expect(","));
      }
      return made;
    }
    return Wrong(token.line, absl::StrCat("a value is wanted, not ", Shown()));
  }

  const std::vector<Token> tokens_;  // ends with kFinish
  size_t at_ = 0;
  int depth_ = 0;
  int blocks_ = 0;
  int loops_ = 0;
};

}  // namespace

Body::Body() = default;
Body::~Body() = default;
Body::Body(Body&&) noexcept = default;
Body& Body::operator=(Body&&) noexcept = default;

absl::StatusOr<std::unique_ptr<Body>> ParseTemplate(absl::string_view source) {
  if (source.size() > kMaxSourceBytes)
    return absl::InvalidArgumentError(absl::StrCat("a template of more than ", kMaxSourceBytes, " bytes"));
  if (FirstInvalidUtf8(source)) return absl::InvalidArgumentError("the template is not UTF-8");
  std::string text = absl::StrReplaceAll(source, {{"\r\n", "\n"}, {"\r", "\n"}});
  if (!text.empty() && text.back() == '\n') text.pop_back();
  MILLRACE_ASSIGN_OR_RETURN(std::vector<Token> tokens, Lexer(std::move(text)).Run());
  return Parser(std::move(tokens)).Run();
}

}  // namespace millrace::text::jinja
