// The way from JSON Lines to an example store: read, clean and encode every example onto disk, split, and write the
// manifest last.
#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/checksum.h"
#include "common/files.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/batch_source.h"
#include "text/chat_template.h"
#include "text/example_store.h"
#include "text/examples.h"
#include "text/new_file.h"
#include "text/source_inputs.h"
#include "text/token_store.h"

namespace millrace::text {
namespace {

using Json = nlohmann::ordered_json;

// Raised when the rules that lead from the same lines to other tokens change.
constexpr int kRules = 1;
constexpr uint32_t kScored = uint32_t{1} << 31;
constexpr uint64_t kMaxAnswerBytes = 1 << 20;

template <typename T>
void Append(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// One example as it lies in the spool.
struct Encoded {
  uint64_t first = 0;
  uint32_t length = 0;
  uint32_t second = 0;
  uint32_t scored = 0;
  float value = 0;
  bool held_out = false;
  std::string details;  // prompts
};

class Preparation {
 public:
  Preparation(ExampleKind kind, const v1::DataSpec& data, const v1::ChatSpec& chat, const Tokenizer& tokenizer,
              uint32_t context, const std::string& base_dir, const std::string& out_dir)
      : kind_(kind),
        data_(data),
        chat_(chat),
        tokenizer_(tokenizer),
        context_(context),
        base_dir_(base_dir),
        out_dir_(out_dir) {}

  absl::StatusOr<ExampleReport> Run() {
    MILLRACE_ASSIGN_OR_RETURN(const ChatTemplate chat_template, ChatTemplate::Load(chat_, tokenizer_, base_dir_));
    template_ = &chat_template;
    MILLRACE_ASSIGN_OR_RETURN(end_of_turn_, EndOfTurn(chat_template, tokenizer_));
    MILLRACE_ASSIGN_OR_RETURN(SourceInputs found, FindInputs(data_, base_dir_));
    for (std::string& why : found.skips) Skip(std::move(why));
    const std::string tokenizer_json = tokenizer_.ToJson();
    inputs_ = {{"rules", kRules},
               {"kind", NameOf(kind_)},
               {"context", context_},
               {"template", Sha256Hex(chat_template.identity())},
               {"tokenizer", Sha256Hex(tokenizer_json)}};
    inputs_.update(found.json);
    inputs_ = AsWritten(inputs_);
    if (std::optional<ExampleReport> report = Reuse()) return *std::move(report);
    MILLRACE_RETURN_IF_ERROR(MakeDirectories(out_dir_));
    MILLRACE_ASSIGN_OR_RETURN(spool_, NewFile::Create(In("spool")));
    for (const SourceFile& file : found.files) MILLRACE_RETURN_IF_ERROR(ReadFile(file));
    MILLRACE_RETURN_IF_ERROR(Split());
    return Write(tokenizer_json);
  }

 private:
  std::string In(absl::string_view name) const { return absl::StrCat(out_dir_, "/", name); }

  void Skip(std::string why) {
    ++report_.skipped;
    if (report_.skips.size() < kMaxSkips) report_.skips.push_back(std::move(why));
  }

  std::optional<ExampleReport> Reuse() const {
    const absl::StatusOr<std::shared_ptr<const ExampleStore>> store = ExampleStore::Open(out_dir_);
    if (!store.ok() || (*store)->inputs() != inputs_.dump()) return std::nullopt;
    ExampleReport report = (*store)->report();
    report.reused = true;
    return report;
  }

  absl::Status ReadFile(const SourceFile& file) {
    if (file.format != Format::kJsonLines) {
      const std::string why = absl::StrCat(file.shown, ": examples are read from JSON Lines (.jsonl, .ndjson)");
      if (file.explicitly_named) return absl::InvalidArgumentError(why);
      Skip(why);
      return absl::OkStatus();
    }
    uint64_t usable = 0;
    std::string first_skip;
    ExampleSink sink;
    sink.skip = [&](std::string why) {
      if (first_skip.empty()) first_skip = why;
      Skip(std::move(why));
    };
    sink.example = [&](Example example, const std::string& where) -> absl::Status {
      MILLRACE_ASSIGN_OR_RETURN(const std::string why, AddExample(std::move(example)));
      if (why.empty()) {
        ++usable;
      } else {
        sink.skip(absl::StrCat(where, ": ", why));
      }
      return absl::OkStatus();
    };
    MILLRACE_ASSIGN_OR_RETURN(const ExampleLines read, ReadExamples(kind_, file, sink));
    if (read.lines == 0 || usable > 0) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(
        file.shown, ": none of its ", read.lines, " lines is usable for ", NameOf(kind_), "; ",
        read.fields.empty()
            ? ""
            : absl::StrCat("fields found: ", absl::StrJoin(read.fields, ", "), "; wanted: ", LayoutsOf(kind_), "; "),
        "the first one left out: ", first_skip));
  }

  // Encodes an example into the spool. Gives why it was left out, or nothing; errors are those of the disk.
  absl::StatusOr<std::string> AddExample(Example example) {
    const auto reason = [](const absl::Status& status) { return std::string(status.message()); };
    if (absl::Status status = CleanExample(kind_, data_.clean(), &example); !status.ok()) return reason(status);
    const std::string sum = Sha256OfExample(example);
    const bool dedup = data_.clean().dedup() == "exact";
    if (dedup && seen_.contains(sum)) {
      ++report_.duplicates;
      return "";
    }
    Encoded encoded;
    encoded.first = tokens_;
    encoded.held_out = by_hash() && IsHeldOut(sum, data_.held_out());
    if (example.answer.size() > kMaxAnswerBytes)
      return absl::StrCat("an answer of more than ", kMaxAnswerBytes, " bytes");
    if (kind_ == ExampleKind::kPrompts) encoded.details = PrintPromptDetails({example.messages, example.answer});
    if (kind_ == ExampleKind::kPairs) encoded.value = example.tie ? kTie : example.margin;
    if (kind_ == ExampleKind::kLabelled) encoded.value = example.label ? 1 : -1;

    std::string packed;
    bool truncated = false;
    for (const int side : {0, 1}) {
      if (side == 1 && kind_ != ExampleKind::kPairs) continue;
      absl::StatusOr<ChatTokens> tokens = Encode(example, side == 0 ? example.response : example.rejected);
      if (!tokens.ok()) return reason(tokens.status());
      if (std::string why = Fit(&*tokens, &truncated); !why.empty()) return why;
      for (size_t i = 0; i < tokens->ids.size(); ++i) {
        encoded.scored += tokens->scored[i];
        Append(tokens->ids[i] | (tokens->scored[i] != 0 ? kScored : 0), &packed);
      }
      (side == 0 ? encoded.length : encoded.second) = static_cast<uint32_t>(tokens->ids.size());
    }
    report_.truncated += truncated;
    tokens_ += packed.size() / 4;
    if (dedup) seen_.insert(sum);
    encoded_.push_back(std::move(encoded));
    MILLRACE_RETURN_IF_ERROR(spool_->Append(packed));
    return "";
  }

  absl::StatusOr<ChatTokens> Encode(const Example& example, const std::string& response) const {
    if (kind_ == ExampleKind::kPrompts) {
      MILLRACE_ASSIGN_OR_RETURN(const ChatText chat, template_->Prompt(example.messages));
      MILLRACE_ASSIGN_OR_RETURN(ChatTokens tokens, EncodeChat(chat, tokenizer_));
      std::fill(tokens.scored.begin(), tokens.scored.end(), 0);
      return tokens;
    }
    std::vector<Message> messages = example.messages;
    if (kind_ != ExampleKind::kSft) messages.push_back({"assistant", response});
    MILLRACE_ASSIGN_OR_RETURN(const ChatText chat, template_->Conversation(messages));
    MILLRACE_ASSIGN_OR_RETURN(ChatTokens tokens, EncodeChat(chat, tokenizer_));
    // Behind the last scored token nothing is learnt.
    while (!tokens.scored.empty() && tokens.scored.back() == 0) {
      tokens.scored.pop_back();
      tokens.ids.pop_back();
    }
    if (kind_ != ExampleKind::kSft) {
      // What is judged is the response alone, whatever the assistant said before.
      size_t begin = tokens.scored.size();
      while (begin > 0 && tokens.scored[begin - 1] != 0) --begin;
      std::fill_n(tokens.scored.begin(), begin, 0);
    }
    if (!tokens.scored.empty()) tokens.scored[0] = 0;  // nothing predicts it
    return tokens;
  }

  // Cuts a sequence to the context; why that is not possible, or nothing.
  std::string Fit(ChatTokens* tokens, bool* truncated) const {
    const size_t size = tokens->ids.size();
    if (kind_ == ExampleKind::kPrompts) {
      if (size == 0) return "the template makes no text of the prompt";
      if (size + 1 > context_)
        return absl::StrCat("prompt longer than the context: ", size, " tokens leave no room for a response in ",
                            context_);
      return "";
    }
    if (size > size_t{context_} + 1) {
      *truncated = true;
      tokens->ids.resize(size_t{context_} + 1);
      tokens->scored.resize(size_t{context_} + 1);
      while (!tokens->scored.empty() && tokens->scored.back() == 0) {
        tokens->scored.pop_back();
        tokens->ids.pop_back();
      }
      if (tokens->ids.empty())
        return absl::StrCat("prompt longer than the context: no response begins in the first ", context_, " of ", size,
                            " tokens");
    }
    if (std::find(tokens->scored.begin(), tokens->scored.end(), 1) == tokens->scored.end())
      return "no token of the assistant is left to learn";
    return "";
  }

  bool by_hash() const { return data_.split().order() == "hash"; }

  absl::Status Split() {
    const uint64_t examples = encoded_.size();
    if (examples == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the sources hold no examples for ", NameOf(kind_), ": ", report_.skipped, " left out",
                       report_.skips.empty() ? "" : ", the first: ", report_.skips.empty() ? "" : report_.skips[0]));
    }
    if (!by_hash()) {
      const auto kept = static_cast<uint64_t>(static_cast<double>(examples) * (1.0 - data_.held_out()));
      for (uint64_t i = kept; i < examples; ++i) encoded_[i].held_out = true;
    }
    for (const Encoded& encoded : encoded_) ++(encoded.held_out ? report_.held_out_examples : report_.train_examples);
    for (const bool held_out : {false, true}) {
      if ((held_out ? report_.held_out_examples : report_.train_examples) > 0) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("none of ", examples, " examples fell into the ", held_out ? "held-out" : "train",
                       " part (held_out is ", data_.held_out() * 100, " %, split.order ", data_.split().order(), "); ",
                       held_out ? "raise" : "lower", " data.held_out, use another split.order or add examples"));
    }
    report_.examples = examples;
    return absl::OkStatus();
  }

  struct PartFile {
    std::unique_ptr<NewFile> file;
    uint64_t records = 0;
    uint64_t tokens = 0;
    uint64_t scored = 0;
    std::string sha256;
  };

  absl::StatusOr<PartFile> WritePart(bool held_out, absl::string_view spooled) {
    PartFile part;
    MILLRACE_ASSIGN_OR_RETURN(part.file, NewFile::Create(In(held_out ? "held_out.examples" : "train.examples")));
    MILLRACE_RETURN_IF_ERROR(part.file->Append(std::string(64, '\0')));
    std::string records, answers;
    for (const Encoded& encoded : encoded_) {
      if (encoded.held_out != held_out) continue;
      const uint64_t tokens = uint64_t{encoded.length} + encoded.second;
      MILLRACE_RETURN_IF_ERROR(part.file->Append(spooled.substr(encoded.first * 4, tokens * 4)));
      Append(part.tokens, &records);
      Append(uint64_t{answers.size()}, &records);
      Append(encoded.length, &records);
      Append(encoded.second, &records);
      Append(encoded.scored, &records);
      Append(encoded.value, &records);
      Append(static_cast<uint32_t>(encoded.details.size()), &records);
      Append(uint32_t{0}, &records);
      answers += encoded.details;
      ++part.records;
      part.tokens += tokens;
      part.scored += encoded.scored;
    }
    MILLRACE_RETURN_IF_ERROR(part.file->Append(records));
    MILLRACE_RETURN_IF_ERROR(part.file->Append(answers));
    MILLRACE_RETURN_IF_ERROR(part.file->Flush());
    std::string header = "MREXAMPL";
    Append(uint32_t{2}, &header);
    Append(static_cast<uint32_t>(kind_), &header);
    for (const uint64_t number :
         {uint64_t{tokenizer_.vocab_size()}, part.records, part.tokens, uint64_t{answers.size()}}) {
      Append(number, &header);
    }
    MILLRACE_RETURN_IF_ERROR(part.file->Overwrite(header, 0));
    MILLRACE_ASSIGN_OR_RETURN(part.sha256, Sha256OfFile(part.file->beside()));
    return part;
  }

  absl::StatusOr<ExampleReport> Write(const std::string& tokenizer_json) {
    MILLRACE_RETURN_IF_ERROR(spool_->Flush());
    MILLRACE_ASSIGN_OR_RETURN(const MappedFile spooled, MappedFile::Open(spool_->beside()));
    MILLRACE_ASSIGN_OR_RETURN(const PartFile train, WritePart(false, spooled.bytes()));
    MILLRACE_ASSIGN_OR_RETURN(const PartFile held_out, WritePart(true, spooled.bytes()));
    report_.train_tokens = train.tokens;
    report_.held_out_tokens = held_out.tokens;
    report_.train_scored = train.scored;
    report_.held_out_scored = held_out.scored;
    report_.vocab_size = tokenizer_.vocab_size();

    // From here on the folder holds no whole store until the manifest is back.
    if (unlink(In("manifest.json").c_str()) != 0 && errno != ENOENT)
      return absl::ErrnoToStatus(errno, absl::StrCat("removing ", In("manifest.json")));
    MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(In("tokenizer.json"), tokenizer_json));
    MILLRACE_RETURN_IF_ERROR(train.file->Commit());
    MILLRACE_RETURN_IF_ERROR(held_out.file->Commit());
    const std::string tokenizer_sum = Sha256Hex(tokenizer_json);
    const auto section = [](const PartFile& part) {
      return Json{{"records", part.records}, {"tokens", part.tokens}, {"scored", part.scored}, {"sha256", part.sha256}};
    };
    const Json manifest = {
        {"format", "millrace example store"},
        {"version", 2},
        {"kind", NameOf(kind_)},
        {"inputs", inputs_},
        {"end_of_turn", end_of_turn_},
        {"tokenizer",
         {{"kind", tokenizer_.kind()}, {"vocab_size", tokenizer_.vocab_size()}, {"sha256", tokenizer_sum}}},
        {"train", section(train)},
        {"held_out", section(held_out)},
        {"report",
         {{"examples", report_.examples},
          {"duplicates", report_.duplicates},
          {"skipped", report_.skipped},
          {"truncated", report_.truncated},
          {"skips", report_.skips}}},
        {"fingerprint", Sha256Hex(absl::StrCat(tokenizer_sum, "\n", train.sha256, "\n", held_out.sha256, "\n"))}};
    MILLRACE_RETURN_IF_ERROR(
        WriteFileAtomically(In("manifest.json"), manifest.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"));
    return report_;
  }

  const ExampleKind kind_;
  const v1::DataSpec& data_;
  const v1::ChatSpec& chat_;
  const Tokenizer& tokenizer_;
  const uint32_t context_;
  const std::string base_dir_;
  const std::string out_dir_;

  const ChatTemplate* template_ = nullptr;
  uint32_t end_of_turn_ = 0;
  ExampleReport report_;
  Json inputs_;
  std::unique_ptr<NewFile> spool_;  // tokens of encoded_, as in the store; never committed
  uint64_t tokens_ = 0;             // in the spool
  std::vector<Encoded> encoded_;
  absl::flat_hash_set<std::string> seen_;
};

}  // namespace

absl::StatusOr<ExampleReport> PrepareExamples(ExampleKind kind, const v1::DataSpec& data, const v1::ChatSpec& chat,
                                              const Tokenizer& tokenizer, uint32_t context, const std::string& base_dir,
                                              const std::string& out_dir) {
  return Preparation(kind, data, chat, tokenizer, context, base_dir, out_dir).Run();
}

}  // namespace millrace::text
