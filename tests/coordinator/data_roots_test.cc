#include "coordinator/data_roots.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <filesystem>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/millrace/v1/field_options.pb.h"
#include "testing/status.h"
#include "text/temporary_folder.h"

namespace millrace::coordinator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using text::TemporaryFolder;
using Depth = DataRoots::Depth;

// root/ is a root, outside/ is not; coordinator/ is the coordinator's.
class DataRootsTest : public ::testing::Test {
 protected:
  DataRootsTest() {
    folder_.Write("root/a.txt", "a");
    folder_.Write("root/b/c.txt", "c");
    folder_.Write("outside/secret.txt", "s");
    folder_.Write("coordinator/jobs/other/checkpoints/best/config.json", "{}");
    roots_ = *DataRoots::Open({folder_ / "root"}, folder_ / "coordinator");
  }
  v1::JobSpec WithSource(const std::string& path) const {
    v1::JobSpec job;
    job.mutable_data()->add_sources()->set_path(path);
    return job;
  }
  absl::Status Check(const v1::JobSpec& job, Depth depth = Depth::kFiles) const {
    return roots_.Check(job, folder_ / "root", depth);
  }
  void Link(const std::string& to, const std::string& name) const {
    std::filesystem::create_symlink(to, folder_ / name);
  }

  const TemporaryFolder folder_;
  DataRoots roots_;
};

TEST_F(DataRootsTest, WhatLiesInARootMayBeRead) {
  Link(folder_ / "root/b", "root/inside");
  for (const std::string& path :
       {std::string("a.txt"), std::string("b"), std::string("*.txt"), std::string("**"), std::string("b/../a.txt"),
        std::string("inside/c.txt"), folder_ / "root/a.txt", folder_ / "root", std::string("not/there.txt")}) {
    EXPECT_OK(Check(WithSource(path))) << path << ": " << Check(WithSource(path));
    EXPECT_OK(Check(WithSource(path), Depth::kPaths)) << path;
  }
}

TEST_F(DataRootsTest, WhatLeadsOutsideIsRefusedByFieldPathAndRoots) {
  Link(folder_ / "outside", "root/link");
  Link(folder_ / "outside/secret.txt", "root/file.txt");
  folder_.Write("root-of-another/x.txt", "x");
  for (const std::string& path :
       {std::string("/etc/passwd"), std::string("../outside/secret.txt"), std::string("b/../../outside/secret.txt"),
        std::string("link"), std::string("link/secret.txt"), std::string("file.txt"), std::string("../outside/*.txt"),
        std::string("../*/secret.txt"), std::string("/**"), folder_ / "outside", folder_ / "root-of-another/x.txt",
        std::string("../outside/not-there"), std::string(".."), std::string("link/*.txt")}) {
    for (const Depth depth : {Depth::kPaths, Depth::kFiles}) {
      const absl::Status status = Check(WithSource(path), depth);
      EXPECT_TRUE(absl::IsPermissionDenied(status)) << path << ": " << status;
      EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("data.sources.0.path"), HasSubstr(path),
                                                       HasSubstr(folder_ / "root"), HasSubstr("--data-root")));
    }
  }
}

TEST_F(DataRootsTest, FilesThatGlobsAndFoldersFindAreFollowedToo) {
  Link(folder_ / "outside/secret.txt", "root/b/secret.txt");
  for (const char* path : {"b", "b/*.txt", "**", "*/secret.txt", "."}) {
    EXPECT_OK(Check(WithSource(path), Depth::kPaths)) << path;
    EXPECT_TRUE(absl::IsPermissionDenied(Check(WithSource(path), Depth::kFiles))) << path;
  }
  EXPECT_OK(Check(WithSource("*.txt"), Depth::kFiles));
  // A link to a folder that only a pattern finds.
  Link(folder_ / "outside", "root/links");
  EXPECT_TRUE(absl::IsPermissionDenied(Check(WithSource("link?/secret.txt"))));
}

// Texts of a job that are no paths. Whoever gives a job another text has to say here that it is none, or to look at it
// in DataRoots::Check.
const std::set<std::string>& NoPaths() {
  static const auto* const fields = new std::set<std::string>{"name",
                                                              "labels",
                                                              "data.sources.field",
                                                              "tokenizer.special_tokens",
                                                              "phases.name",
                                                              "phases.data.sources.field",
                                                              "phases.chat.system",
                                                              "phases.evaluate.samples.prompts",
                                                              "phases.trainable.freeze",
                                                              "phases.trainable.learning_rates.pattern",
                                                              "phases.rewards.pattern",
                                                              "phases.compare.title",
                                                              "phases.adapter.targets",
                                                              "phases.adapter.feedforward_targets",
                                                              "phases.adapter.init_text"};
  return *fields;
}

using Descriptor = google::protobuf::Descriptor;
using Field = google::protobuf::FieldDescriptor;

// The dotted names of all fields that hold text of the user's own, with the way to each. Maps are taken as one field.
void FindTexts(const Descriptor& message, const std::string& path, const std::vector<const Field*>& way,
               std::vector<std::pair<std::string, std::vector<const Field*>>>* texts) {
  for (int i = 0; i < message.field_count(); ++i) {
    const Field* const field = message.field(i);
    const std::string name = path.empty() ? field->name() : absl::StrCat(path, ".", field->name());
    std::vector<const Field*> longer = way;
    longer.push_back(field);
    const bool words = field->is_map();
    if (field->cpp_type() == Field::CPPTYPE_MESSAGE && !words) {
      FindTexts(*field->message_type(), name, longer, texts);
    } else if (words || (field->cpp_type() == Field::CPPTYPE_STRING &&
                         field->options().GetExtension(v1::rule).one_of_size() == 0)) {
      texts->push_back({name, longer});
    }
  }
}

// A job with this one text.
v1::JobSpec JobWith(const std::vector<const Field*>& way, const std::string& text) {
  v1::JobSpec job;
  google::protobuf::Message* message = &job;
  for (const Field* const field : way) {
    const google::protobuf::Reflection& reflection = *message->GetReflection();
    if (field->cpp_type() == Field::CPPTYPE_MESSAGE) {
      message =
          field->is_repeated() ? reflection.AddMessage(message, field) : reflection.MutableMessage(message, field);
    } else if (field->is_repeated()) {
      reflection.AddString(message, field, text);
    } else {
      reflection.SetString(message, field, text);
    }
  }
  return job;
}

TEST_F(DataRootsTest, EveryTextOfAJobIsAPathThatIsLookedAtOrKnownToBeNone) {
  std::vector<std::pair<std::string, std::vector<const Field*>>> texts;
  FindTexts(*v1::JobSpec::descriptor(), "", {}, &texts);
  std::set<std::string> found;
  int paths = 0;
  for (const auto& [name, way] : texts) {
    found.insert(name);
    if (NoPaths().contains(name)) continue;
    ++paths;
    const absl::Status status = Check(JobWith(way, folder_ / "outside"), Depth::kPaths);
    EXPECT_TRUE(absl::IsPermissionDenied(status))
        << name
        << " may hold a path that DataRoots::Check does not look at; if it is none, add it to NoPaths: " << status;
  }
  EXPECT_GE(paths, 9);
  for (const std::string& name : NoPaths()) EXPECT_TRUE(found.contains(name)) << name << " is no text of a job";
}

TEST_F(DataRootsTest, EveryPathOfAJobIsLookedAt) {
  const std::string outside = folder_ / "outside";
  std::vector<std::pair<std::string, v1::JobSpec>> jobs(9);
  const auto phase = [](v1::JobSpec* job) { return job->add_phases(); };
  jobs[0].first = "tokenizer.path";
  jobs[0].second.mutable_tokenizer()->set_path(outside);
  jobs[1].first = "phases.0.from";
  phase(&jobs[1].second)->set_from(outside);
  jobs[2].first = "phases.0.data.sources.0.path";
  phase(&jobs[2].second)->mutable_data()->add_sources()->set_path(outside);
  jobs[3].first = "phases.0.chat.template";
  phase(&jobs[3].second)->mutable_chat()->set_template_(outside);
  jobs[4].first = "phases.0.reference";
  phase(&jobs[4].second)->set_reference(outside);
  jobs[5].first = "phases.0.policy.value_from";
  phase(&jobs[5].second)->mutable_policy()->set_value_from(outside);
  jobs[6].first = "phases.0.rewards.0.from";
  phase(&jobs[6].second)->add_rewards()->set_from(outside);
  jobs[7].first = "phases.0.compare.from.0";
  phase(&jobs[7].second)->mutable_compare()->add_from(outside);
  jobs[8].first = "phases.0.from";
  phase(&jobs[8].second)->set_from("../outside");
  for (const auto& [field, job] : jobs) {
    const absl::Status status = Check(job, Depth::kPaths);
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << field << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field + ": "));
  }
}

TEST_F(DataRootsTest, ModelsMayComeFromTheCoordinatorsJobsButTextMayNot) {
  v1::JobSpec job;
  job.add_phases()->set_from(folder_ / "coordinator/jobs/other/checkpoints/best");
  EXPECT_OK(Check(job));
  job.mutable_phases(0)->set_from("pretrain@best");
  EXPECT_OK(Check(job));
  job.mutable_phases(0)->set_from(folder_ / "coordinator");
  EXPECT_FALSE(Check(job).ok());
  EXPECT_FALSE(Check(WithSource(folder_ / "coordinator/jobs/other")).ok());
  // A model's files that lead elsewhere.
  folder_.Write("root/model/config.json", "{}");
  Link(folder_ / "outside/secret.txt", "root/model/model.safetensors");
  job.mutable_phases(0)->set_from("model");
  EXPECT_OK(Check(job, Depth::kPaths));
  EXPECT_TRUE(absl::IsPermissionDenied(Check(job)));
}

TEST_F(DataRootsTest, NamedTemplatesAndRatingsAreNoFiles) {
  v1::JobSpec job;
  v1::PhaseSpec* const phase = job.add_phases();
  phase->mutable_chat()->set_template_("chatml");
  phase->mutable_data()->add_sources()->set_path("compare@ratings");
  EXPECT_OK(Check(job));
}

TEST_F(DataRootsTest, WithoutRootsThereAreNoBounds) {
  const auto all = DataRoots::Open({}, folder_ / "coordinator");
  EXPECT_OK(all->Check(WithSource("/etc/passwd"), "/", Depth::kFiles));
  const auto slash = DataRoots::Open({"/"}, folder_ / "coordinator");
  EXPECT_OK(slash->Check(WithSource("/etc/passwd"), "/", Depth::kFiles));
}

TEST_F(DataRootsTest, ARootIsAFolder) {
  const absl::Status status = DataRoots::Open({folder_ / "nothing"}, folder_ / "coordinator").status();
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("--data-root"), HasSubstr(folder_ / "nothing")));
  EXPECT_FALSE(DataRoots::Open({folder_ / "root/a.txt"}, folder_ / "coordinator").ok());
  // Roots are links to what they mean.
  Link(folder_ / "root", "link-to-root");
  const auto linked = DataRoots::Open({folder_ / "link-to-root"}, folder_ / "coordinator");
  EXPECT_OK(linked->Check(WithSource("a.txt"), folder_ / "root", Depth::kFiles));
}

}  // namespace
}  // namespace millrace::coordinator
