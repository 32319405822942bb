// Holds rules, dashboards and their documents to each other and to docs/metrics.md, which layering_test holds to the
// code. Whether the queries find anything is cluster_test's.
#include <yaml-cpp/yaml.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "re2/re2.h"

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::IsEmpty;
using ::testing::StartsWith;

const fs::path& Root() {
  static const fs::path* root = new fs::path(MILLRACE_SOURCE_DIR);
  return *root;
}

std::string Read(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << "cannot read " << path;
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

struct Rule {
  std::string alert, record, expr;
  std::map<std::string, std::string> annotations;
  std::string severity;
  bool has_for = false;
};
std::vector<Rule> Rules() {
  std::vector<Rule> rules;
  for (const char* name : {"recording.yml", "alerts.yml"}) {
    for (const YAML::Node& group : YAML::LoadFile(Root() / "deploy/prometheus/rules" / name)["groups"]) {
      for (const YAML::Node& node : group["rules"]) {
        Rule& rule = rules.emplace_back();
        rule.alert = node["alert"].as<std::string>("");
        rule.record = node["record"].as<std::string>("");
        rule.expr = node["expr"].as<std::string>();
        if (node["labels"]) rule.severity = node["labels"]["severity"].as<std::string>("");
        rule.has_for = static_cast<bool>(node["for"]);
        if (node["annotations"]) rule.annotations = node["annotations"].as<std::map<std::string, std::string>>();
      }
    }
  }
  EXPECT_GT(rules.size(), 30u);
  return rules;
}

// What queries may ask for: the table's names, with those that a histogram has, recorded ones, and Prometheus' own.
std::set<std::string> KnownSeries() {
  std::set<std::string> known = {"up", "ALERTS",
                                 // Served where processes have certificates.
                                 "millrace_tls_certificate_expiry_timestamp_seconds"};
  const std::string doc = Read(Root() / "docs/metrics.md");
  re2::StringPiece rest(doc);
  static const RE2 row(R"(\| `((?:millrace|process)_[a-z0-9_]+)` \| ([a-z]+) \|)");
  std::string name, type;
  while (RE2::FindAndConsume(&rest, row, &name, &type)) {
    if (type == "histogram") {
      for (const char* part : {"_bucket", "_sum", "_count"}) known.insert(name + part);
    } else {
      known.insert(name);
    }
  }
  for (const Rule& rule : Rules()) {
    if (!rule.record.empty()) known.insert(rule.record);
  }
  return known;
}

// The names in a query that are series: words with an underscore or a colon before a brace, a bracket or an operator,
// outside of strings, braces and the label lists of by, on and ignoring.
std::vector<std::string> SeriesOf(std::string query) {
  RE2::GlobalReplace(&query, R"("(?:[^"\\]|\\.)*")", "");
  RE2::GlobalReplace(&query, R"(\{[^}]*\})", "");
  RE2::GlobalReplace(&query, R"(\[[^\]]*\])", "");
  RE2::GlobalReplace(&query, R"(\b(by|without|on|ignoring)\s*\([^)]*\)(\s*group_(left|right))?)", "");
  RE2::GlobalReplace(&query, R"(\b\d[\d.]*(e-?\d+)?)", "");
  std::vector<std::string> series;
  re2::StringPiece rest(query);
  static const RE2 word(R"(([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\(?))");
  std::string name, call;
  while (RE2::FindAndConsume(&rest, word, &name, &call)) {
    if (call.empty() && name != "and" && name != "or" && name != "unless") series.push_back(name);
  }
  return series;
}

std::map<std::string, json> Dashboards() {
  std::map<std::string, json> dashboards;
  for (const auto& entry : fs::directory_iterator(Root() / "deploy/grafana/dashboards")) {
    dashboards[entry.path().stem().string()] = json::parse(Read(entry.path()));
  }
  EXPECT_GE(dashboards.size(), 4u);
  return dashboards;
}

TEST(Queries, AskOnlyForSeriesThatThereAre) {
  const std::set<std::string> known = KnownSeries();
  const auto check = [&known](const std::string& where, const std::string& query) {
    const std::vector<std::string> asked = SeriesOf(query);
    for (const std::string& series : asked) {
      EXPECT_TRUE(known.contains(series)) << where << " asks for " << series << ": " << query;
    }
  };
  for (const Rule& rule : Rules()) check(rule.alert + rule.record, rule.expr);
  int queries = 0;
  for (const auto& [name, dashboard] : Dashboards()) {
    for (const json& panel : dashboard["panels"]) {
      if (panel["type"] == "row") continue;
      for (const json& target : panel["targets"]) {
        ++queries;
        EXPECT_THAT(SeriesOf(target["expr"]), ::testing::Not(IsEmpty()));
        check(absl::StrCat(name, ", ", panel["title"].get<std::string>()), target["expr"]);
      }
    }
    for (const json& annotation : dashboard["annotations"]["list"]) check(name, annotation["expr"]);
  }
  EXPECT_GT(queries, 60);
}

TEST(Queries, TheReaderOfQueriesSeesSeries) {
  EXPECT_THAT(
      SeriesOf(R"(sum by (job, le) (rate(a_bucket{kind="x_y"}[5m])) > 5e-4 * on (z_z) group_left b:c:d and vector(1))"),
      ::testing::ElementsAre("a_bucket", "b:c:d"));
  EXPECT_FALSE(KnownSeries().contains("millrace_no_such_metric"));
}

TEST(Alerts, EachSaysWhatItMeansAndHasAChapter) {
  const std::string doc = Read(Root() / "docs/alerts.md");
  std::set<std::string> chapters;
  re2::StringPiece rest(doc);
  std::string title, body;
  static const RE2 chapter(R"((?s)\n## (\w+)\n(.*?)(?:\n\n|\n?$))");
  while (RE2::FindAndConsume(&rest, chapter, &title, &body)) {
    chapters.insert(title);
    for (const char* part : {"**Means**", "**Look**", "**Do**"}) EXPECT_TRUE(absl::StrContains(body, part)) << title;
    // The next chapter's line break belongs to it.
    rest = re2::StringPiece(rest.data() - 1, rest.size() + 1);
  }
  std::set<std::string> alerts;
  for (const Rule& rule : Rules()) {
    if (rule.alert.empty()) continue;
    EXPECT_TRUE(alerts.insert(rule.alert).second) << rule.alert << " is there twice";
    EXPECT_THAT(rule.alert, StartsWith("Millrace"));
    EXPECT_TRUE(rule.has_for) << rule.alert;
    EXPECT_THAT(rule.severity, ::testing::AnyOf("critical", "warning", "none")) << rule.alert;
    EXPECT_FALSE(rule.annotations.at("summary").empty());
    EXPECT_FALSE(rule.annotations.at("description").empty());
    EXPECT_EQ(rule.annotations.at("runbook_url"), "docs/alerts.md#" + absl::AsciiStrToLower(rule.alert));
  }
  EXPECT_THAT(chapters, ::testing::ContainerEq(alerts));
}

// promtool knows of each what we think that the trouble looks like; this, that there was such a trouble.
TEST(Alerts, EachIsRaisedByARealTrouble) {
  std::set<std::string> awaited, alerts;
  const std::string tests = Read(Root() / "tests/monitoring/alerts_test.cc");
  re2::StringPiece rest(tests);
  std::string alert;
  static const RE2 wait(R"re((?m)^ +prometheus\.Await(?:Alert|Fired)\("(\w+)")re");
  while (RE2::FindAndConsume(&rest, wait, &alert)) awaited.insert(alert);
  for (const Rule& rule : Rules()) {
    if (!rule.alert.empty()) alerts.insert(rule.alert);
  }
  EXPECT_THAT(awaited, ::testing::ContainerEq(alerts));
}

TEST(Dashboards, CanBeProvisioned) {
  for (const auto& [name, dashboard] : Dashboards()) {
    SCOPED_TRACE(name);
    EXPECT_EQ(dashboard["uid"], name);  // so they are unique
    EXPECT_TRUE(dashboard["id"].is_null());
    // Provisioning fills no inputs in.
    EXPECT_FALSE(dashboard.contains("__inputs"));
    EXPECT_FALSE(dashboard["description"].get<std::string>().empty());
    std::set<std::string> variables;
    for (const json& variable : dashboard["templating"]["list"]) variables.insert(variable["name"]);
    EXPECT_TRUE(variables.contains("datasource"));

    std::set<int> ids;
    std::vector<json> places;
    for (const json& panel : dashboard["panels"]) {
      const std::string title = panel["title"];
      SCOPED_TRACE(title);
      EXPECT_TRUE(ids.insert(panel["id"].get<int>()).second);
      const json& place = panel["gridPos"];
      EXPECT_LE(place["x"].get<int>() + place["w"].get<int>(), 24);
      for (const json& other : places) {
        const bool apart = place["x"].get<int>() >= other["x"].get<int>() + other["w"].get<int>() ||
                           other["x"].get<int>() >= place["x"].get<int>() + place["w"].get<int>() ||
                           place["y"].get<int>() >= other["y"].get<int>() + other["h"].get<int>() ||
                           other["y"].get<int>() >= place["y"].get<int>() + place["h"].get<int>();
        EXPECT_TRUE(apart) << "lies on another panel";
      }
      places.push_back(place);
      if (panel["type"] == "row") continue;
      EXPECT_FALSE(panel["description"].get<std::string>().empty());
      EXPECT_FALSE(panel["fieldConfig"]["defaults"]["unit"].get<std::string>().empty());
      EXPECT_EQ(panel["datasource"]["uid"], "${datasource}");
      std::set<std::string> references;
      for (const json& target : panel["targets"]) {
        EXPECT_TRUE(references.insert(target["refId"]).second);
        EXPECT_EQ(target["datasource"]["uid"], "${datasource}");
        const std::string expr = target["expr"];
        re2::StringPiece rest(expr);
        std::string variable;
        while (RE2::FindAndConsume(&rest, R"(\$(\w+))", &variable)) {
          EXPECT_TRUE(variables.contains(variable) || variable == "__rate_interval") << variable;
        }
      }
      // Where a panel names an alert, there is one.
      const std::string description = panel["description"];
      re2::StringPiece text(description);
      std::string alert;
      while (RE2::FindAndConsume(&text, R"((Millrace[A-Z]\w+))", &alert)) {
        EXPECT_TRUE(absl::StrContains(Read(Root() / "docs/alerts.md"), "\n## " + alert + "\n")) << alert;
      }
    }
  }
}

}  // namespace
