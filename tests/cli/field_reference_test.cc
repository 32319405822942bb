// Holds the tables of docs/job-file.md, docs/evaluation.md and docs/sweeps.md to the rules beside the fields of their messages.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/evaluation.pb.h"
#include "proto/millrace/v1/field_options.pb.h"
#include "proto/millrace/v1/job.pb.h"
#include "proto/millrace/v1/jobs.pb.h"

namespace millrace {
namespace {

using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;

std::string TypeOf(const FieldDescriptor& field) {
  if (field.is_map()) return "names with values";
  std::string type;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_MESSAGE: {
      std::string name = field.message_type()->name();
      type = absl::StrCat("[", name, "](#", name, ")");
      break;
    }
    case FieldDescriptor::CPPTYPE_DOUBLE:
      type = "number";
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      type = "true or false";
      break;
    case FieldDescriptor::CPPTYPE_STRING:
      type = "text";
      break;
    default:
      type = "whole number";
  }
  return field.is_repeated() ? absl::StrCat("list of ", type) : type;
}

// Whole numbers with all their digits.
std::string Number(double number) {
  return number == std::floor(number) ? absl::StrFormat("%.0f", number) : absl::StrCat(number);
}

std::string BoundsOf(const v1::FieldRule& rule) {
  if (rule.one_of_size() > 0) return absl::StrCat("`", absl::StrJoin(rule.one_of(), "`, `"), "`");
  std::vector<std::string> bounds;
  if (rule.has_min()) bounds.push_back(absl::StrCat(rule.exclusive_min() ? "> " : "≥ ", Number(rule.min())));
  if (rule.has_max()) bounds.push_back(absl::StrCat(rule.exclusive_max() ? "< " : "≤ ", Number(rule.max())));
  return absl::StrJoin(bounds, ", ");
}

void AppendTables(const Descriptor& message, std::set<std::string>* done, std::string* out) {
  if (!done->insert(message.name()).second) return;
  absl::StrAppend(out, "### ", message.name(),
                  "\n\n| field | type | default | allowed | meaning |\n|---|---|---|---|---|\n");
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const v1::FieldRule& rule = field.options().GetExtension(v1::rule);
    const std::string fallback = rule.required()                ? "required"
                                 : rule.default_value().empty() ? ""
                                                                : absl::StrCat("`", rule.default_value(), "`");
    absl::StrAppend(out, "| `", field.name(), "` | ", TypeOf(field), " | ", fallback, " | ", BoundsOf(rule), " | ",
                    absl::StrReplaceAll(rule.doc(), {{"|", "\\|"}}), " |\n");
  }
  absl::StrAppend(out, "\n");
  for (int i = 0; i < message.field_count(); ++i) {
    if (message.field(i)->message_type() != nullptr && !message.field(i)->is_map())
      AppendTables(*message.field(i)->message_type(), done, out);
  }
}

// Documents whose last part is the tables of a message and what it holds.
struct Reference {
  const char* document;
  const Descriptor* message;
  size_t messages;  // at least
};

class FieldReference : public ::testing::TestWithParam<Reference> {
 protected:
  static std::string Tables(size_t* messages) {
    std::string tables;
    std::set<std::string> done;
    AppendTables(*GetParam().message, &done, &tables);
    *messages = done.size();
    return tables;
  }
};
INSTANTIATE_TEST_SUITE_P(Documents, FieldReference,
                         ::testing::Values(Reference{"job-file", v1::JobSpec::descriptor(), 12},
                                           Reference{"evaluation", v1::TasksFile::descriptor(), 2},
                                           Reference{"sweeps", v1::SweepSpec::descriptor(), 3}),
                         [](const auto& info) {
                           return absl::StrReplaceAll(info.param.document, {{"-", "_"}});
                         });

TEST_P(FieldReference, TablesAreTheFieldRules) {
  size_t messages = 0;
  const std::string expected = Tables(&messages);
  const std::string path = absl::StrCat(MILLRACE_SOURCE_DIR "/docs/", GetParam().document, ".md");
  std::ifstream stream(path);
  ASSERT_TRUE(stream.good()) << path;
  const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  std::string name = GetParam().message->name();
  const size_t start = text.find(absl::StrCat("### ", name, "\n"));
  const std::string found = start == std::string::npos ? "" : text.substr(start);
  if (found != expected) {
    const std::string fresh =
        (std::filesystem::temp_directory_path() / absl::StrCat(GetParam().document, "-tables.md")).string();
    std::ofstream(fresh) << expected;
    FAIL() << path << ": its tables differ from the rules of " << name << "; the right ones are in " << fresh;
  }
}

TEST_P(FieldReference, EveryFieldHasAMeaning) {
  size_t messages = 0;
  const std::string tables = Tables(&messages);
  EXPECT_EQ(tables.find("|  |\n"), std::string::npos) << tables;
  EXPECT_GE(messages, GetParam().messages);
}

}  // namespace
}  // namespace millrace
