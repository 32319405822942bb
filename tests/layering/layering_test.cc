// Reads the source tree and holds it to the rules that the compiler does not check.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace {

namespace fs = std::filesystem;

const fs::path& Root() {
  static const fs::path* root = new fs::path(MILLRACE_SOURCE_DIR);
  return *root;
}

std::string Read(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << "cannot read " << path;
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> Words(const std::string& text) {
  static const std::regex word("[a-z_]+");
  return {std::sregex_token_iterator(text.begin(), text.end(), word), std::sregex_token_iterator()};
}

// room -> rooms that it may use, from the table in docs/architecture.md.
const std::map<std::string, std::set<std::string>>& Table() {
  static const auto* table = [] {
    auto* table = new std::map<std::string, std::set<std::string>>;
    static const std::regex row(R"(\| ([a-z]+)/ \|.*\| ([^|]*) \|)");
    for (const std::string& line : Lines(Read(Root() / "docs/architecture.md"))) {
      std::smatch match;
      if (!std::regex_match(line, match, row)) continue;
      const std::vector<std::string> uses = Words(match[2].str());
      (*table)[match[1].str()] = {uses.begin(), uses.end()};
    }
    for (auto& [room, uses] : *table) {
      if (!uses.contains("all")) continue;
      uses.clear();
      for (const auto& [other, unused] : *table) {
        if (other != room) uses.insert(other);
      }
    }
    return table;
  }();
  return *table;
}

bool IsSource(const fs::path& path) { return path.extension() == ".cc" || path.extension() == ".h"; }

std::vector<fs::path> FilesUnder(const fs::path& folder) {
  std::vector<fs::path> files;
  if (!fs::exists(folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// The rooms that the lines of `text` include, with the line.
std::vector<std::pair<std::string, std::string>> IncludedRooms(const std::string& text) {
  static const std::regex include(R"re(\s*#\s*include\s*"([a-z_]+)/[^"]*".*)re");
  std::vector<std::pair<std::string, std::string>> rooms;
  for (const std::string& line : Lines(text)) {
    std::smatch match;
    if (std::regex_match(line, match, include) && Table().contains(match[1].str())) rooms.emplace_back(match[1], line);
  }
  return rooms;
}

// The words of millrace_room(...)'s USES in a room's CMakeLists.txt.
std::vector<std::string> DeclaredUses(const std::string& cmake) {
  static const std::regex uses(R"(\bUSES\b([^)A-Z$]*))");
  std::smatch match;
  if (!std::regex_search(cmake, match, uses)) return {};
  return Words(match[1].str());
}

TEST(Layering, TableNamesEveryRoomOnceAndHasNoCycle) {
  ASSERT_GE(Table().size(), 12u);
  // Rooms are listed in order in CMakeLists.txt; each uses only earlier ones, so that there can be no cycle.
  std::smatch match;
  const std::string cmake = Read(Root() / "CMakeLists.txt");
  ASSERT_TRUE(std::regex_search(cmake, match, std::regex(R"(MILLRACE_ROOMS ([a-z ]+)\))")));
  std::set<std::string> earlier;
  for (const std::string& room : Words(match[1].str())) {
    ASSERT_TRUE(Table().contains(room)) << room << " is missing in docs/architecture.md";
    for (const std::string& used : Table().at(room)) EXPECT_TRUE(earlier.contains(used)) << room << " uses " << used;
    earlier.insert(room);
  }
  EXPECT_EQ(earlier.size(), Table().size());
}

TEST(Layering, RoomsIncludeOnlyWhatTheTableAllows) {
  int includes = 0;
  for (const auto& [room, allowed] : Table()) {
    for (const fs::path& file : FilesUnder(Root() / room)) {
      if (!IsSource(file)) continue;
      for (const auto& [used, line] : IncludedRooms(Read(file))) {
        ++includes;
        EXPECT_TRUE(used == room || allowed.contains(used)) << fs::relative(file, Root()) << ": " << line << "\n"
                                                            << room << "/ may not use " << used << "/";
      }
    }
  }
  EXPECT_GT(includes, 100) << "the include lines were not found";
}

TEST(Layering, RoomsDeclareOnlyWhatTheTableAllows) {
  for (const auto& [room, allowed] : Table()) {
    if (room == "proto") continue;
    for (const std::string& used : DeclaredUses(Read(Root() / room / "CMakeLists.txt"))) {
      EXPECT_TRUE(allowed.contains(used)) << room << "/CMakeLists.txt: USES " << used;
    }
  }
}

TEST(Layering, ProductionCodeIncludesNoTests) {
  for (const auto& [room, unused] : Table()) {
    for (const fs::path& file : FilesUnder(Root() / room)) {
      if (!IsSource(file)) continue;
      const std::string text = Read(file);
      EXPECT_EQ(text.find("#include \"testing/"), std::string::npos) << file;
      EXPECT_EQ(text.find("#include \"../"), std::string::npos) << file;
    }
  }
}

// Then compiling the source shows that the header needs nothing before it.
TEST(Layering, SourcesIncludeTheirOwnHeaderFirst) {
  static const std::regex include(R"re(#\s*include\s*["<]([^">]*)[">])re");
  int found = 0;
  for (const auto& [room, unused] : Table()) {
    for (const fs::path& file : FilesUnder(Root() / room)) {
      fs::path header = file;
      header.replace_extension(".h");
      if (file.extension() != ".cc" || !fs::exists(header)) continue;
      std::smatch match;
      const std::string text = Read(file);
      ASSERT_TRUE(std::regex_search(text, match, include)) << file;
      EXPECT_EQ(match[1].str(), fs::relative(header, Root()).string()) << fs::relative(file, Root());
      ++found;
    }
  }
  EXPECT_GT(found, 100);
}

TEST(Layering, EverySourceOfARoomIsListed) {
  for (const auto& [room, unused] : Table()) {
    const std::string cmake = Read(Root() / room / "CMakeLists.txt");
    for (const fs::path& file : FilesUnder(Root() / room)) {
      if (!IsSource(file)) continue;
      const std::string name = fs::relative(file, Root() / room).string();
      EXPECT_NE(cmake.find(name), std::string::npos) << room << "/" << name << " is in no target";
    }
  }
}

TEST(Layering, EveryTestFileIsRegistered) {
  int tests = 0;
  for (const fs::path& file : FilesUnder(Root() / "tests")) {
    const std::string name = file.filename().string();
    if (!name.ends_with("_test.cc") && !name.ends_with("_test.sh") && !name.ends_with("_fuzz.cc")) continue;
    ++tests;
    const fs::path cmake = file.parent_path() / "CMakeLists.txt";
    ASSERT_TRUE(fs::exists(cmake)) << cmake;
    const std::string text = Read(cmake);
    if (name.ends_with("_fuzz.cc")) {
      const std::string target = name.substr(0, name.size() - std::string("_fuzz.cc").size());
      EXPECT_TRUE(std::regex_search(text, std::regex("millrace_fuzz\\(" + target + "[ )]"))) << name;
    } else {
      EXPECT_NE(text.find(name), std::string::npos) << fs::relative(file, Root()) << " is registered nowhere";
    }
  }
  EXPECT_GT(tests, 30);
}

TEST(Layering, NoTestIsDisabled) {
  for (const fs::path& file : FilesUnder(Root() / "tests")) {
    if (!file.filename().string().ends_with("_test.cc") || file.filename() == "layering_test.cc") continue;
    const std::string text = Read(file);
    EXPECT_EQ(text.find("DISABLED_"), std::string::npos) << file;
    EXPECT_FALSE(std::regex_search(text, std::regex("sleep_for|\\bsleep\\(|usleep\\(|absl::SleepFor")))
        << fs::relative(file, Root()) << " sleeps; wait on a condition";
  }
}

// "NAME type" of each metric that the text of a source file makes; names are literal there.
std::set<std::string> MetricsMade(const std::string& text) {
  static const std::regex made(R"re(\b(Counter|Gauge|Histogram)\(\s*"(millrace_[a-z0-9_]+)")re");
  std::set<std::string> metrics;
  for (std::sregex_iterator it(text.begin(), text.end(), made), end; it != end; ++it) {
    std::string type = (*it)[1].str();
    type[0] = static_cast<char>(type[0] - 'A' + 'a');
    metrics.insert((*it)[2].str() + " " + type);
  }
  return metrics;
}

TEST(Layering, MetricsTableIsTheCodesMetrics) {
  std::set<std::string> documented, made;
  static const std::regex row(R"(\| `(millrace_[a-z0-9_]+)` \| ([a-z]+) \|)");
  const std::string doc = Read(Root() / "docs/metrics.md");
  for (std::sregex_iterator it(doc.begin(), doc.end(), row), end; it != end; ++it) {
    documented.insert((*it)[1].str() + " " + (*it)[2].str());
  }
  for (const auto& [room, unused] : Table()) {
    for (const fs::path& file : FilesUnder(Root() / room)) {
      if (IsSource(file)) made.merge(MetricsMade(Read(file)));
    }
  }
  EXPECT_FALSE(made.empty());
  EXPECT_THAT(documented, ::testing::ContainerEq(made)) << "docs/metrics.md and the code's metrics differ";
}

TEST(Layering, ReadersOfTheEnvironmentAreFew) {
  // Configuration comes from the job file and flags; the shell alone has an environment. Who somebody is at a cluster
  // is said once for all commands.
  const fs::path who = Root() / "cli/tls_flags.h";
  for (const auto& [room, unused] : Table()) {
    for (const fs::path& file : FilesUnder(Root() / room)) {
      if (!IsSource(file) || file == who) continue;
      EXPECT_EQ(Read(file).find("getenv("), std::string::npos) << file << " reads the environment";
    }
  }
}

// The checks themselves can fail.
TEST(LayeringChecks, SeeWhatTheyLookFor) {
  const auto rooms = IncludedRooms("#include \"ps/shard.h\"  // why\n#include <vector>\n#include \"gtest/gtest.h\"\n");
  ASSERT_EQ(rooms.size(), 1u);
  EXPECT_EQ(rooms[0].first, "ps");
  EXPECT_FALSE(Table().at("coordinator").contains("ps"));
  EXPECT_FALSE(Table().at("ps").contains("model"));
  EXPECT_FALSE(Table().at("common").contains("text"));
  EXPECT_THAT(MetricsMade("a(metrics->Counter(\n  \"millrace_x_total\", \"X.\")), json[\"millrace_y\"]"),
              ::testing::ElementsAre("millrace_x_total counter"));
  EXPECT_THAT(DeclaredUses("millrace_room(x\n  USES common text\n  LINKS foo)"),
              ::testing::ElementsAre("common", "text"));
}

}  // namespace
