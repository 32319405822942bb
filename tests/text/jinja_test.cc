#include "text/jinja.h"

#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "testing/status.h"

namespace millrace::text {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

JinjaTemplate::Variables Given(const Json& messages, bool prompt) {
  JinjaTemplate::Variables variables;
  variables.add_generation_prompt = prompt;
  variables.strings = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  for (const Json& message : messages) {
    variables.messages.push_back({{"role", MarkedText::Of(message["role"].get<std::string>(), false)},
                                  {"content", MarkedText::Of(message["content"].get<std::string>(), true)}});
  }
  return variables;
}

absl::StatusOr<JinjaOutput> Render(const std::string& source, const JinjaTemplate::Variables& variables = {},
                                   const JinjaLimits& limits = {}) {
  absl::StatusOr<JinjaTemplate> parsed = JinjaTemplate::Parse(source);
  if (!parsed.ok()) return parsed.status();
  return parsed->Render(variables, limits);
}

// The text, with \x01 and \x02 around what is generated.
std::string Shown(const JinjaOutput& output) {
  std::string shown;
  for (size_t i = 0; i < output.rendered.text.size(); ++i) {
    const bool before = i > 0 && output.generated[i - 1] != 0;
    if ((output.generated[i] != 0) != before) shown += before ? "\x02" : "\x01";
    shown += output.rendered.text[i];
  }
  return !output.generated.empty() && output.generated.back() != 0 ? shown + "\x02" : shown;
}

TEST(Jinja, RendersAsJinjaDoes) {
  std::ifstream stream(MILLRACE_SOURCE_DIR "/tests/golden/text/chat_templates.json");
  const Json cases = Json::parse(std::string(std::istreambuf_iterator<char>(stream), {}));
  ASSERT_GT(cases.size(), 100u);
  int failing = 0;
  for (const Json& one : cases) {
    const std::string source = one["template"].get<std::string>();
    const auto output = Render(source, Given(one["messages"], one["prompt"].get<bool>()));
    if (one.contains("fails")) {
      EXPECT_FALSE(output.ok()) << source;
      ++failing;
      continue;
    }
    ASSERT_OK(output) << source << ": " << output.status();
    std::string expected = one["expected"].get<std::string>();
    // Marks that touch are one run here.
    for (size_t at; (at = expected.find("\x02\x01")) != std::string::npos;) expected.erase(at, 2);
    EXPECT_EQ(Shown(*output), expected) << source;
  }
  EXPECT_GT(failing, 15);
}

TEST(Jinja, EveryByteKnowsWhoSaidIt) {
  JinjaTemplate::Variables variables;
  variables.messages = {{{"content", MarkedText::Of(" <A>b c ", true)}}};
  const auto own = [&](const std::string& expression) {
    const auto output = Render("{{ " + expression + " }}", variables);
    EXPECT_OK(output) << expression << ": " << output.status();
    std::string marks;
    for (size_t i = 0; i < output->rendered.text.size(); ++i) {
      const bool other = output->rendered.own[i] == 0;
      marks += other ? std::string(1, output->rendered.text[i]) : "*";
    }
    return marks;
  };
  EXPECT_EQ(own("'<A>' + messages[0].content.strip() + '<A>'"), "<A>******<A>");
  EXPECT_EQ(own("'x' ~ messages[0].content[1:4] ~ 'y' if true"), "x***y");
  EXPECT_EQ(own("messages[0].content.split(' ')|join('-')"), "-****-*-");
  EXPECT_EQ(own("('A' + messages[0].content)|lower|trim|replace('b', 'new')"), "a****new**");
  EXPECT_EQ(own("messages[0].content|upper|string * 2"), "****************");
  EXPECT_EQ(own("messages[0]|tojson"), "{\"content\": \"********\"}");
  EXPECT_EQ(own("messages[0].content|first + messages[0].content[-2] + 'c'"), "**c");
}

TEST(Jinja, ErrorsNameTheLineAndWhatIsNotSupported) {
  const auto error = [](const std::string& source) { return std::string(Render(source).status().message()); };
  EXPECT_THAT(error("a\n{{ x|reverse }}"), HasSubstr("line 2: the filter 'reverse' is not supported"));
  EXPECT_THAT(error("{% macro f() %}{% endmacro %}"), HasSubstr("line 1: the block 'macro' is not supported"));
  EXPECT_THAT(error("\n\n{{ raise_exception('roles!') }}"), HasSubstr("line 3: the template says: roles!"));
  EXPECT_THAT(error("{% if true %}a"), HasSubstr("ends before endif"));
  EXPECT_THAT(error("{{ 1.5 }}"), HasSubstr("fraction"));
  EXPECT_THAT(error("{{ strftime_now('%d') }}"), HasSubstr("'strftime_now' is not supported"));
}

TEST(Jinja, WorkNestingAndOutputAreBounded) {
  const auto fails = [](const std::string& source) {
    const auto output = Render(source, {}, {.work = 1 << 22, .output = 1 << 16});
    EXPECT_FALSE(output.ok()) << source.substr(0, 60);
  };
  fails(
      "{% for i in range(1000) %}{% for j in range(1000) %}{% for k in range(1000) %}{% endfor %}{% endfor %}{% endfor "
      "%}");
  fails("{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}");
  fails("{{ 'abcdefgh' * 1000000000000 }}");
  fails("{{ range(1000000000) }}");
  fails("{% for i in range(1000) %}" + std::string(100, 'x') + "{% endfor %}");
  fails("{% set ns = namespace(x=[]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}");
  fails(
      "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson "
      "}}");
  fails(
      "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}"
      "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}");
  fails("{% set ns = namespace() %}{% set ns.me = [ns] %}");
  fails("{{ 9223372036854775807 + 1 }}");
  fails("{{ (-9223372036854775807 - 1) // -1 }}");
  std::string deep = "1";
  for (int i = 0; i < 10000; ++i) deep = "(" + deep + ")";
  fails("{{ " + deep + " }}");
  for (const std::string part : {".a", "|trim", "+1", "[0]", " is none", " or 1"}) {
    std::string chain = "{{ x";
    for (int i = 0; i < 10000; ++i) chain += part;
    fails(chain + " }}");
  }
  std::string blocks;
  for (int i = 0; i < 10000; ++i) blocks += "{% if true %}";
  fails(blocks);
  std::string minus(10000, '-');
  fails("{{ 1" + minus + "1 }}");
  std::string nots = "{{ ";
  for (int i = 0; i < 10000; ++i) nots += "not ";
  fails(nots + "1 }}");
}

TEST(Jinja, ValuesOfJsonAreVariables) {
  const Json values = Json::parse(R"({"question": "What {{ is }} it?", "options": ["a", "b", 3], "half": 0.5,
      "yes": true, "none": null, "large": 18446744073709551615, "about": {"topic": {"name": "tea"}},
      "messages": "mine"})");
  JinjaTemplate::Variables variables;
  variables.values = &values;
  const auto rendered = [&](const std::string& source) {
    const auto output = Render(source, variables);
    return output.ok() ? output->rendered.text : std::string(output.status().message());
  };
  EXPECT_EQ(rendered("{{ question }}"), "What {{ is }} it?");
  EXPECT_EQ(rendered("{% for o in options %}{{ loop.index }}{{ o }} {% endfor %}"), "1a 2b 33 ");
  EXPECT_EQ(rendered("{{ options[2] + 1 }} {{ half }} {{ large }} {{ yes }} {{ none is none }}"),
            "4 0.5 18446744073709551615 True True");
  EXPECT_EQ(rendered("{{ about.topic.name }} {{ about | tojson }}"), R"(tea {"topic": {"name": "tea"}})");
  EXPECT_EQ(rendered("{{ messages }}"), "mine");
  EXPECT_EQ(rendered("a{{ qustion }}b"), "ab");
  variables.strict = true;
  EXPECT_EQ(rendered("\na{{ qustion }}b"), "line 2: 'qustion' is undefined");
  EXPECT_EQ(rendered("{{ 'x' ~ about.name }}"), "line 1: 'name' is undefined");
  EXPECT_EQ(rendered("{% for o in optoins %}{% endfor %}"), "line 1: 'optoins' is undefined");
  EXPECT_EQ(rendered("{{ qustion | default('none') }}{% if qustion is defined %}!{% endif %}"), "none");

  Json deep = "x";
  for (int i = 0; i < 100; ++i) deep = Json::array({deep});
  const Json nested = {{"deep", deep}}, list = Json::array();
  variables.values = &nested;
  EXPECT_EQ(rendered("{{ deep }}"), "lists are nested too deeply");
  variables.values = &list;
  EXPECT_EQ(rendered("x"), "a template's values are no object");
}

}  // namespace
}  // namespace millrace::text
