// Any text gives tasks or an error; tasks that are given keep all rules. What follows a zero byte is a line of data, of
// which the tasks make questions or say why not.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/string_view.h"
#include "common/yaml_message.h"
#include "evaluation/questions.h"
#include "evaluation/tasks_file.h"

namespace {

// One file for all runs: the data of every task.
const std::string& Folder() {
  static const auto* const kFolder = [] {
    std::string pattern = (std::filesystem::temp_directory_path() / "millrace-tasks-fuzz-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) abort();
    static const std::string* const kMade = new std::string(pattern);
    std::atexit([] { std::filesystem::remove_all(*kMade); });
    return kMade;
  }();
  return *kFolder;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  auto tasks = millrace::evaluation::ParseTasks(input.substr(0, zero), "fuzz");
  if (!tasks.ok()) {
    if (tasks.status().message().empty()) abort();
    return 0;
  }
  if (!millrace::CheckRules(*tasks).ok() || tasks->tasks().empty()) abort();
  std::ofstream(Folder() + "/data.jsonl", std::ios::binary)
      << (zero == absl::string_view::npos ? absl::string_view() : input.substr(zero + 1));
  for (millrace::v1::TaskSpec& task : *tasks->mutable_tasks()) {
    task.clear_data();
    task.add_data("data.jsonl");
    if (task.few_shot_data_size() > 0) task.mutable_few_shot_data()->CopyFrom(task.data());
    const auto questions = millrace::evaluation::MakeQuestions(task, Folder());
    if (!questions.ok()) continue;
    for (const millrace::evaluation::Question& question : *questions) {
      if (task.type() == "choice" && question.right >= question.continuations.size()) abort();
      if (task.chat() != !question.messages.empty()) abort();
    }
  }
  return 0;
}
