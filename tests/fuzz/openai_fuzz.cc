// Requests of OpenAI's API: any bytes give what keeps its bounds, or an error that can be told.
#include <cstdint>
#include <cstdlib>

#include "serve/openai.h"
#include "text/unicode.h"

namespace {

using namespace millrace::serve;

void Check(const absl::StatusOr<GenerateRequest>& request) {
  if (!request.ok()) {
    if (HttpStatusOf(request.status()) != 400 || ErrorJson(400, request.status()).empty()) abort();
    return;
  }
  const Task& task = request->task;
  const auto prompts = static_cast<int64_t>(request->prompts.size());
  if (request->chat ? request->messages.empty() : prompts < 1) abort();
  if (task.samples < 1 || task.samples * (request->chat ? 1 : prompts) > kMaxChoices) abort();
  if (request->max_tokens.value_or(0) < 0 || task.likeliest.value_or(0) > kMaxLikeliest) abort();
  if (!(task.sampling.temperature >= 0) || !(task.sampling.top_p > 0) || task.sampling.top_k < 0) abort();
  if (task.score_prompt && !task.likeliest.has_value()) abort();
  if (task.stop_strings.size() > kMaxStops) abort();
  for (const std::string& stop : task.stop_strings) {
    if (stop.empty() || stop.size() > kMaxStopBytes) abort();
  }
  for (const millrace::text::Message& message : request->messages) {
    if (millrace::text::FirstInvalidUtf8(message.content).has_value()) abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view body(reinterpret_cast<const char*>(data), size);
  Check(ParseCompletion(body));
  Check(ParseChat(body));
  if (const auto request = ParseEmbeddings(body); request.ok()) {
    if (request->inputs.empty() || (request->inputs.size() > kMaxInputs)) abort();
  }
  return 0;
}
