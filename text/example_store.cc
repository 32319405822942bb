#include "text/example_store.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/batch_source.h"
#include "text/token_store.h"

namespace millrace::text {
namespace {

static_assert(std::endian::native == std::endian::little, "tokens are read as they lie in the file");

using Json = nlohmann::ordered_json;

constexpr absl::string_view kMagic = "MREXAMPL";
constexpr uint32_t kVersion = 2;
constexpr size_t kHeaderBytes = 64;
constexpr size_t kRecordBytes = 40;
constexpr uint32_t kScored = uint32_t{1} << 31;
constexpr uint64_t kMaxManifestBytes = 256 << 20;

template <typename T>
T Load(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

absl::Status Broken(const std::string& what) {
  return absl::DataLossError(absl::StrCat(what, "; remove the folder, so that the examples are prepared again"));
}

const Json& At(const Json& object, const char* name) {
  static const Json null;
  const auto it = object.is_object() ? object.find(name) : object.end();
  return it == object.end() ? null : *it;
}

uint64_t Number(const Json& value) { return value.is_number_unsigned() ? value.get<uint64_t>() : 0; }
std::string Text(const Json& value) { return value.is_string() ? value.get<std::string>() : ""; }

// Scored tokens of a sequence of the file.
absl::StatusOr<uint32_t> CheckSequence(const ExampleFile& file, uint64_t first, uint32_t length) {
  if (length == 0) return Broken("a sequence without tokens");
  uint32_t scored = 0;
  for (uint64_t i = first; i < first + length; ++i) {
    if (file.id(i) >= file.vocab_size())
      return Broken(absl::StrCat("token ", file.id(i), ", beyond the vocabulary of ", file.vocab_size()));
    scored += file.is_scored(i);
  }
  if (file.is_scored(first)) return Broken("a first token that is scored");
  if ((scored == 0) != (file.kind() == ExampleKind::kPrompts))
    return Broken(absl::StrCat(scored, " scored tokens in a sequence of ", NameOf(file.kind())));
  return scored;
}

bool ValueFits(ExampleKind kind, float value) {
  if (kind == ExampleKind::kPairs) return value == kTie || (value >= 0 && value <= 1e6f);
  if (kind == ExampleKind::kLabelled) return value == 1 || value == -1;
  return value == 0;
}

}  // namespace

absl::StatusOr<ExampleFile> ExampleFile::Parse(absl::string_view bytes, absl::string_view name) {
  if (bytes.size() < kHeaderBytes || bytes.substr(0, kMagic.size()) != kMagic) {
    return Broken(absl::StrCat(name, " is no file of examples: ", bytes.size(), " bytes, which do not begin with ",
                               kMagic, " and its header"));
  }
  const auto version = Load<uint32_t>(bytes.data() + 8);
  if (version != kVersion)
    return Broken(absl::StrCat(name, " has version ", version, "; this program reads ", kVersion));
  const auto kind = Load<uint32_t>(bytes.data() + 12);
  if (kind > static_cast<uint32_t>(ExampleKind::kPrompts)) return Broken(absl::StrCat(name, " has kind ", kind));
  ExampleFile file;
  file.data_ = bytes.data() + kHeaderBytes;
  file.kind_ = static_cast<ExampleKind>(kind);
  file.vocab_ = Load<uint64_t>(bytes.data() + 16);
  file.records_ = Load<uint64_t>(bytes.data() + 24);
  file.tokens_ = Load<uint64_t>(bytes.data() + 32);
  const auto answers = Load<uint64_t>(bytes.data() + 40);
  if (file.vocab_ == 0 || file.vocab_ > kScored) return Broken(absl::StrCat(name, ": a vocabulary of ", file.vocab_));
  if (bytes.substr(48, kHeaderBytes - 48) != absl::string_view("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16))
    return Broken(absl::StrCat(name, ": the header does not end with zeros"));
  const uint64_t body = bytes.size() - kHeaderBytes;
  if (file.tokens_ > body / 4 || file.records_ > body / kRecordBytes || answers > body ||
      file.tokens_ * 4 + file.records_ * kRecordBytes + answers != body) {
    return Broken(absl::StrCat(name, " is truncated or too long: its header promises ", file.tokens_, " tokens, ",
                               file.records_, " records and ", answers, " bytes of answers, and ", body,
                               " bytes follow"));
  }
  uint64_t first = 0, answer = 0;
  const char* records = file.data_ + file.tokens_ * 4;
  for (uint64_t i = 0; i < file.records_; ++i) {
    const char* record = records + i * kRecordBytes;
    const auto length = Load<uint32_t>(record + 16), second = Load<uint32_t>(record + 20);
    const auto answer_bytes = Load<uint32_t>(record + 32);
    const std::string where = absl::StrCat(name, ": record ", i);
    if (Load<uint64_t>(record) != first || Load<uint64_t>(record + 8) != answer ||
        uint64_t{length} + second > file.tokens_ - first || answer_bytes > answers - answer ||
        (second != 0) != (file.kind_ == ExampleKind::kPairs) || Load<uint32_t>(record + 36) != 0 ||
        !ValueFits(file.kind_, Load<float>(record + 28))) {
      return Broken(where + " does not follow the format");
    }
    if (file.kind_ == ExampleKind::kPrompts) {
      const char* const details = file.data_ + file.tokens_ * 4 + file.records_ * kRecordBytes + answer;
      if (absl::Status good = ParsePromptDetails({details, answer_bytes}).status(); !good.ok()) {
        return Annotate(good, where);
      }
    } else if (answer_bytes != 0) {
      return Broken(where + " has an answer, which only prompts have");
    }
    absl::StatusOr<uint32_t> scored = CheckSequence(file, first, length);
    if (!scored.ok()) return Annotate(scored.status(), where);
    uint64_t total = *scored;
    if (second != 0) {
      scored = CheckSequence(file, first + length, second);
      if (!scored.ok()) return Annotate(scored.status(), where);
      total += *scored;
    }
    if (total != Load<uint32_t>(record + 24))
      return Broken(absl::StrCat(where, " has ", total, " scored tokens, not ", Load<uint32_t>(record + 24)));
    file.scored_ += total;
    file.longest_ = std::max({file.longest_, length, second});
    first += uint64_t{length} + second;
    answer += answer_bytes;
  }
  if (first != file.tokens_ || answer != answers)
    return Broken(absl::StrCat(name, ": tokens or answers that no record holds"));
  return file;
}

ExampleRecord ExampleFile::operator[](uint64_t index) const {
  const char* record = data_ + tokens_ * 4 + index * kRecordBytes;
  ExampleRecord found;
  found.first = Load<uint64_t>(record);
  found.length = Load<uint32_t>(record + 16);
  found.second = Load<uint32_t>(record + 20);
  found.scored = Load<uint32_t>(record + 24);
  found.value = Load<float>(record + 28);
  found.details = {data_ + tokens_ * 4 + records_ * kRecordBytes + Load<uint64_t>(record + 8),
                  Load<uint32_t>(record + 32)};
  return found;
}

std::string PrintPromptDetails(const PromptDetails& details) {
  Json messages = Json::array();
  for (const Message& message : details.messages) {
    messages.push_back({{"role", message.role}, {"content", message.content}});
  }
  const Json json = {{"messages", std::move(messages)}, {"answer", details.answer}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<PromptDetails> ParsePromptDetails(absl::string_view text) {
  // Nothing is nested deeper; a deep nest would exhaust the parser's stack.
  const auto shallow = [](int depth, Json::parse_event_t, Json&) { return depth < 8; };
  const Json json = Json::parse(text.begin(), text.end(), shallow, /*allow_exceptions=*/false);
  const auto text_of = [](const Json& object, const char* name, std::string* value) {
    const auto found = object.find(name);
    if (found == object.end() || !found->is_string()) return false;
    *value = found->get<std::string>();
    return true;
  };
  PromptDetails details;
  bool good = json.is_object() && text_of(json, "answer", &details.answer) && json.contains("messages") &&
              json["messages"].is_array();
  for (size_t i = 0; good && i < json["messages"].size(); ++i) {
    const Json& message = json["messages"][i];
    Message& made = details.messages.emplace_back();
    good = message.is_object() && text_of(message, "role", &made.role) && text_of(message, "content", &made.content);
  }
  if (!good) return Broken("no messages and answer of a prompt");
  return details;
}

uint32_t ExampleFile::id(uint64_t token) const { return Load<uint32_t>(data_ + 4 * token) & ~kScored; }
bool ExampleFile::is_scored(uint64_t token) const { return (Load<uint32_t>(data_ + 4 * token) & kScored) != 0; }

absl::StatusOr<std::shared_ptr<const ExampleStore>> ExampleStore::Open(const std::string& dir) {
  const std::string manifest_path = dir + "/manifest.json";
  absl::StatusOr<std::string> manifest = ReadFile(manifest_path, kMaxManifestBytes);
  if (!manifest.ok()) return Annotate(manifest.status(), absl::StrCat("no prepared examples in ", dir));
  const Json json = Json::parse(*manifest, nullptr, /*allow_exceptions=*/false);
  if (At(json, "format") != Json("millrace example store"))
    return Broken(absl::StrCat(manifest_path, " is no manifest of an example store"));
  if (At(json, "version") != Json(kVersion))
    return Broken(absl::StrCat(manifest_path, " has another version than ", kVersion));

  auto store = std::shared_ptr<ExampleStore>(new ExampleStore());
  std::string sums;
  const auto check = [&](absl::string_view bytes, const std::string& name, const char* section) {
    const std::string sum = Sha256Hex(bytes);
    absl::StrAppend(&sums, sum, "\n");
    const std::string wanted = Text(At(At(json, section), "sha256"));
    if (sum == wanted) return absl::OkStatus();
    return Broken(absl::StrCat(name, " was altered: its SHA-256 is ", sum, ", the manifest says '", wanted, "'"));
  };

  const std::string tokenizer_path = dir + "/tokenizer.json";
  MILLRACE_ASSIGN_OR_RETURN(const std::string tokenizer, ReadFile(tokenizer_path, kMaxManifestBytes));
  MILLRACE_RETURN_IF_ERROR(check(tokenizer, tokenizer_path, "tokenizer"));
  MILLRACE_ASSIGN_OR_RETURN(store->tokenizer_, ParseTokenizer(tokenizer, tokenizer_path));
  for (const char* part : {"train", "held_out"}) {
    const std::string path = absl::StrCat(dir, "/", part, ".examples");
    MILLRACE_ASSIGN_OR_RETURN(MappedFile map, MappedFile::Open(path));
    // The format first: it says truncated where a checksum could only say altered.
    MILLRACE_ASSIGN_OR_RETURN(const ExampleFile file, ExampleFile::Parse(map.bytes(), path));
    MILLRACE_RETURN_IF_ERROR(check(map.bytes(), path, part));
    if (file.vocab_size() != store->vocab_size() || At(json, "kind") != Json(NameOf(file.kind()))) {
      return Broken(
          absl::StrCat(path, " is of another kind than the manifest or of another vocabulary than tokenizer.json"));
    }
    (part == absl::string_view("train") ? store->train_ : store->held_out_) = file;
    store->maps_.push_back(std::move(map));
  }
  store->token_bytes_ = store->tokenizer_->TextBytes();
  store->fingerprint_ = Sha256Hex(sums);
  const Json& end_of_turn = At(json, "end_of_turn");
  if (At(json, "fingerprint") != Json(store->fingerprint_) || !end_of_turn.is_number_unsigned() ||
      end_of_turn.get<uint64_t>() >= store->vocab_size()) {
    return Broken(absl::StrCat(manifest_path, ": fingerprint or end_of_turn are not those of its parts"));
  }
  store->end_of_turn_ = end_of_turn.get<uint32_t>();
  store->inputs_ = At(json, "inputs").dump();
  ExampleReport& report = store->report_;
  const Json& counts = At(json, "report");
  report.examples = store->train_.size() + store->held_out_.size();
  report.duplicates = Number(At(counts, "duplicates"));
  report.skipped = Number(At(counts, "skipped"));
  for (const Json& skip : At(counts, "skips")) {
    if (report.skips.size() < kMaxSkips) report.skips.push_back(Text(skip));
  }
  report.truncated = Number(At(counts, "truncated"));
  report.train_examples = store->train_.size();
  report.held_out_examples = store->held_out_.size();
  report.train_tokens = store->train_.tokens();
  report.held_out_tokens = store->held_out_.tokens();
  report.train_scored = store->train_.scored();
  report.held_out_scored = store->held_out_.scored();
  report.vocab_size = store->vocab_size();
  return std::shared_ptr<const ExampleStore>(std::move(store));
}

}  // namespace millrace::text
