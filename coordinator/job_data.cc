#include "coordinator/job_data.h"

#include <filesystem>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/files.h"
#include "common/job_file.h"
#include "common/status.h"
#include "text/tokenizer.h"

namespace millrace::coordinator {
namespace {

namespace fs = std::filesystem;

constexpr char kTokenizerFile[] = "tokenizer.json";

std::string In(const std::string& folder, absl::string_view name) { return absl::StrCat(folder, "/", name); }

}  // namespace

std::optional<text::ExampleKind> ExamplesOf(const std::string& objective) {
  const ObjectiveTraits traits = TraitsOf(objective);
  if (traits.data.empty()) return std::nullopt;
  if (traits.samples) return text::ExampleKind::kPrompts;
  if (traits.pairs) return text::ExampleKind::kPairs;
  return traits.prefers ? text::ExampleKind::kLabelled : text::ExampleKind::kSft;
}

absl::StatusOr<std::optional<text::DataReport>> PrepareJobData(const v1::JobSpec& job,
                                                               const std::string& base_directory,
                                                               const std::string& out,
                                                               const text::PrepareOptions& options) {
  if (job.has_data()) {
    MILLRACE_ASSIGN_OR_RETURN(text::DataReport report, text::PrepareData(job, base_directory, out, options));
    return report;
  }
  const std::string path = (fs::path(base_directory) / job.tokenizer().path()).lexically_normal().string();
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer, text::LoadTokenizer(path));
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(out));
  MILLRACE_RETURN_IF_ERROR(
      WriteFileAtomically(In(out, "tokenizer_config.json"), tokenizer->ConfigJson(job.model().family())));
  MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(In(out, kTokenizerFile), tokenizer->ToJson()));
  return std::nullopt;
}

absl::StatusOr<PhaseReport> PreparePhaseData(const v1::JobSpec& job, const v1::PhaseSpec& phase,
                                             const std::string& base_directory, const std::string& job_data,
                                             const std::string& out) {
  if (const std::optional<text::ExampleKind> kind = ExamplesOf(phase.objective()); kind.has_value()) {
    MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<text::Tokenizer> tokenizer, text::LoadTokenizer(job_data));
    // A reward model reads an answer's last token too.
    const uint32_t context = TextContext(job.model(), phase) - (TraitsOf(phase.objective()).trains_rewards ? 1 : 0);
    MILLRACE_ASSIGN_OR_RETURN(
        text::ExampleReport report,
        text::PrepareExamples(*kind, phase.data(), phase.chat(), *tokenizer, context, base_directory, out));
    return report;
  }
  v1::JobSpec own = job;
  *own.mutable_data() = phase.data();
  own.mutable_tokenizer()->set_path(In(fs::absolute(job_data).string(), kTokenizerFile));
  MILLRACE_ASSIGN_OR_RETURN(text::DataReport report, text::PrepareData(own, base_directory, out));
  return report;
}

absl::Status CheckPrepared(const v1::JobSpec& job, const std::string& objective, const std::string& folder) {
  if (ExamplesOf(objective).has_value()) return text::ExampleStore::Open(folder).status();
  if (objective.empty() && !job.has_data()) return text::LoadTokenizer(In(folder, kTokenizerFile)).status();
  return text::TokenStore::Open(folder).status();
}

}  // namespace millrace::coordinator
