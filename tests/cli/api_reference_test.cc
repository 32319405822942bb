// Holds docs/api.md to the protos: all that users call, with the comments that stand there.
//   api_reference_test DESCRIPTORS DOCUMENT: a FileDescriptorSet with its source info (protoc), docs/api.md
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/field_options.pb.h"

namespace millrace {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::DescriptorPool;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::MethodDescriptor;
using google::protobuf::ServiceDescriptor;

std::string* const descriptors = new std::string;
std::string* const document = new std::string;

std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// What stands before it and behind it in the file, on one line.
template <typename Described>
std::string CommentOf(const Described& described) {
  google::protobuf::SourceLocation location;
  if (!described.GetSourceLocation(&location)) return "";
  std::string text = absl::StrCat(absl::StripAsciiWhitespace(location.leading_comments), " ",
                                  absl::StripAsciiWhitespace(location.trailing_comments));
  text = absl::StrReplaceAll(text, {{"\n ", " "}, {"\n", " "}, {"|", "\\|"}});
  return std::string(absl::StripAsciiWhitespace(text));
}

// Messages of the job file have a document of their own.
bool IsOfJobFile(const Descriptor& message) { return absl::EndsWith(message.file()->name(), "/job.proto"); }

std::string Link(const std::string& name) {
  return absl::StrCat("[", name, "](#", absl::AsciiStrToLower(absl::StrReplaceAll(name, {{".", ""}})), ")");
}

// "Job.State" of millrace.v1.Job.State.
template <typename Described>
std::string NameOf(const Described& described) {
  return described.full_name().substr(described.file()->package().size() + 1);
}

std::string TypeOf(const FieldDescriptor& field) {
  if (field.is_map()) {
    return absl::StrCat("map of ", TypeOf(*field.message_type()->map_key()), " to ",
                        TypeOf(*field.message_type()->map_value()));
  }
  std::string type = field.type_name();
  if (field.message_type() != nullptr) {
    type = IsOfJobFile(*field.message_type())
               ? absl::StrCat("[", field.message_type()->name(), "](job-file.md#", field.message_type()->name(), ")")
               : Link(NameOf(*field.message_type()));
  } else if (field.enum_type() != nullptr) {
    type = Link(NameOf(*field.enum_type()));
  }
  return absl::StrCat(field.is_repeated() ? "list of " : field.has_optional_keyword() ? "optional " : "", type);
}

class Writer {
 public:
  void Add(const ServiceDescriptor& service) {
    absl::StrAppend(&text_, "## ", service.full_name(), "\n\n| call | request | reply | what it does |\n|---|---|---|---|\n");
    for (int i = 0; i < service.method_count(); ++i) {
      const MethodDescriptor& method = *service.method(i);
      absl::StrAppend(&text_, "| `", method.name(), "` | ", Link(NameOf(*method.input_type())), " | ",
                      method.server_streaming() ? "stream of " : "", Link(NameOf(*method.output_type())), " | ",
                      CommentOf(method), " |\n");
      Want(*method.input_type());
      Want(*method.output_type());
    }
    absl::StrAppend(&text_, "\n");
    for (size_t i = 0; i < messages_.size(); ++i) Add(*messages_[i]);
    messages_.clear();
  }
  const std::string& text() const { return text_; }

 private:
  void Want(const Descriptor& message) {
    if (!IsOfJobFile(message) && done_.insert(message.full_name()).second) messages_.push_back(&message);
  }

  void Add(const Descriptor& message) {
    absl::StrAppend(&text_, "### ", NameOf(message), "\n\n");
    if (const std::string comment = CommentOf(message); !comment.empty()) absl::StrAppend(&text_, comment, "\n\n");
    if (message.field_count() == 0) absl::StrAppend(&text_, "No fields.\n\n");
    if (message.field_count() > 0) absl::StrAppend(&text_, "| field | type | meaning |\n|---|---|---|\n");
    std::vector<const EnumDescriptor*> enums;
    for (int i = 0; i < message.field_count(); ++i) {
      const FieldDescriptor& field = *message.field(i);
      const std::string& doc = field.options().GetExtension(v1::rule).doc();
      absl::StrAppend(&text_, "| `", field.name(), "` | ", TypeOf(field), " | ", doc.empty() ? CommentOf(field) : doc,
                      " |\n");
      if (field.message_type() != nullptr && !field.is_map()) Want(*field.message_type());
      if (field.enum_type() != nullptr && done_.insert(field.enum_type()->full_name()).second) {
        enums.push_back(field.enum_type());
      }
    }
    if (message.field_count() > 0) absl::StrAppend(&text_, "\n");
    for (const EnumDescriptor* const type : enums) {
      absl::StrAppend(&text_, "### ", NameOf(*type), "\n\n| value | number | meaning |\n|---|---|---|\n");
      for (int i = 0; i < type->value_count(); ++i) {
        if (type->value(i)->number() == 0) continue;  // unspecified
        absl::StrAppend(&text_, "| `", type->value(i)->name(), "` | ", type->value(i)->number(), " | ",
                        CommentOf(*type->value(i)), " |\n");
      }
      absl::StrAppend(&text_, "\n");
    }
  }

  std::string text_;
  std::set<std::string> done_;
  std::vector<const Descriptor*> messages_;
};

TEST(ApiReference, IsWhatTheProtosSay) {
  google::protobuf::FileDescriptorSet files;
  ASSERT_TRUE(files.ParseFromString(ReadAll(*descriptors))) << *descriptors;
  DescriptorPool pool;
  for (const auto& file : files.file()) ASSERT_NE(pool.BuildFile(file), nullptr) << file.name();
  Writer writer;
  for (const char* name : {"millrace.v1.Jobs", "millrace.v1.Ratings"}) {
    const ServiceDescriptor* const service = pool.FindServiceByName(name);
    ASSERT_NE(service, nullptr) << name;
    writer.Add(*service);
  }
  EXPECT_FALSE(absl::StrContains(writer.text(), "|  |\n")) << "something has no comment:\n" << writer.text();
  const std::string text = ReadAll(*document);
  const size_t start = text.find("## millrace.v1.Jobs\n");
  const std::string found = start == std::string::npos ? "" : text.substr(start);
  if (found != writer.text()) {
    const std::string fresh = (std::filesystem::temp_directory_path() / "api-reference.md").string();
    std::ofstream(fresh) << writer.text();
    FAIL() << *document << " differs from the protos; what it should say is in " << fresh;
  }
}

}  // namespace
}  // namespace millrace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 3) {
    std::fprintf(stderr, "usage: api_reference_test DESCRIPTORS DOCUMENT\n");
    return 2;
  }
  *millrace::descriptors = argv[1];
  *millrace::document = argv[2];
  return RUN_ALL_TESTS();
}
