// The tokenizer's training and encoding.
#include <chrono>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "bench/groups.h"
#include "common/philox.h"
#include "common/status.h"
#include "text/tokenizer.h"

namespace millrace::bench {
namespace {

constexpr size_t kTrainBytes = 100 << 20;
constexpr size_t kEncodeBytes = 16 << 20;
constexpr size_t kPieceBytes = 1 << 16;  // of a document
constexpr uint32_t kVocab = 8192;
constexpr double kTrainSeconds = 60;
constexpr double kEncodeMegabytes = 20;  // a second and core
constexpr char kShakespeare[] = "../shared/data/tinyshakespeare.txt";

// Documents of words of a text in its order, of which some are other words of it, and some new.
class Corpus {
 public:
  explicit Corpus(const std::string& text) : words_(absl::StrSplit(text, ' ')) {}

  std::string Document(uint64_t number) const {
    const Philox philox = Philox(1).Derive(number);
    std::string document;
    for (uint64_t i = 0; document.size() < kPieceBytes; ++i) {
      const auto random = philox(0, i);
      const std::string& word = words_[(number * 8191 + i) % words_.size()];
      absl::StrAppend(&document, random[0] % 16 == 0 ? words_[random[1] % words_.size()] : word,
                      random[0] % 64 == 1 ? absl::StrCat(random[2] % 10000) : "", " ");
    }
    return document;
  }

 private:
  const std::vector<std::string> words_;
};

}  // namespace

absl::Status BenchText(const Machine&, Report* report) {
  std::ifstream file(kShakespeare);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (text.empty()) {
    report->Absent("text", absl::StrCat(kShakespeare, " is not there"));
    return absl::OkStatus();
  }
  const Corpus corpus(text);
  std::vector<std::string> documents;
  for (size_t bytes = 0; bytes < kTrainBytes; bytes += documents.back().size()) {
    documents.push_back(corpus.Document(documents.size()));
  }
  text::BpeTraining training;
  training.vocab_size = kVocab;
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point begun) {
    return std::chrono::duration<double>(Clock::now() - begun).count();
  };
  Clock::time_point begun = Clock::now();
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer,
                            text::TrainBpe(training, [&](const std::function<absl::Status(absl::string_view)>& each) {
                              for (const std::string& document : documents) MILLRACE_RETURN_IF_ERROR(each(document));
                              return absl::OkStatus();
                            }));
  const double megabytes = static_cast<double>(kTrainBytes) / 1e6;
  report->Add({"text/train", megabytes / since(begun), "MB/s", megabytes / kTrainSeconds, 1});
  begun = Clock::now();
  std::vector<uint32_t> ids;
  size_t bytes = 0;
  for (size_t i = 0; bytes < kEncodeBytes; ++i) {
    ids.clear();
    MILLRACE_RETURN_IF_ERROR(tokenizer->EncodeOrdinary(documents[i], &ids));
    bytes += documents[i].size();
  }
  report->Add({"text/encode", static_cast<double>(bytes) / 1e6 / since(begun), "MB/s", kEncodeMegabytes, 1});
  return absl::OkStatus();
}

}  // namespace millrace::bench
