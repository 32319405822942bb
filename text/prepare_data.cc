// The way from sources to a token store: find and fingerprint the files, clean and split their documents onto disk,
// make or load the tokenizer, encode, and write the manifest last.
#include <errno.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/files.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/clean.h"
#include "text/corpus.h"
#include "text/new_file.h"
#include "text/source_inputs.h"
#include "text/sources.h"
#include "text/token_store.h"
#include "text/unicode.h"

namespace millrace::text {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// Raised when the rules that lead from the same sources to other tokens change.
constexpr int kRules = 1;

// Cleaned documents one after another in a file.
struct Spool {
  std::unique_ptr<NewFile> file;
  std::vector<uint64_t> ends;  // of each document

  uint64_t bytes() const { return ends.empty() ? 0 : ends.back(); }
  absl::Status Add(absl::string_view document) {
    ends.push_back(bytes() + document.size());
    return file->Append(document);
  }
};

// Documents of one part of the split, in order, together a run of mapped memory.
struct Part {
  absl::string_view text;
  std::vector<absl::string_view> documents;

  absl::Status ForEach(const std::function<absl::Status(absl::string_view)>& each) const {
    for (const absl::string_view document : documents) MILLRACE_RETURN_IF_ERROR(each(document));
    return absl::OkStatus();
  }
};

class Preparation {
 public:
  Preparation(const v1::JobSpec& job, const std::string& base_dir, const std::string& out_dir,
              const PrepareOptions& options)
      : job_(job), base_dir_(base_dir), out_dir_(out_dir), options_(options) {}

  absl::StatusOr<DataReport> Run() {
    MILLRACE_RETURN_IF_ERROR(Fingerprint());
    if (const std::optional<DataReport> report = Reuse()) return *report;
    std::error_code error;
    fs::create_directories(out_dir_, error);
    if (error) return absl::ErrnoToStatus(error.value(), absl::StrCat("making the folder ", out_dir_));
    MILLRACE_RETURN_IF_ERROR(ReadSources());
    MILLRACE_RETURN_IF_ERROR(Split());
    MILLRACE_RETURN_IF_ERROR(MakeTokenizer());
    return Write();
  }

 private:
  std::string In(absl::string_view name) const { return absl::StrCat(out_dir_, "/", name); }
  std::string Percent() const { return absl::StrCat(job_.data().held_out() * 100, " %"); }

  void Skip(std::string why) {
    ++report_.skipped;
    if (report_.skips.size() < kMaxSkips) report_.skips.push_back(std::move(why));
  }

  // Everything that the store is a function of.
  absl::Status Fingerprint() {
    MILLRACE_ASSIGN_OR_RETURN(SourceInputs found, FindInputs(job_.data(), base_dir_));
    for (std::string& why : found.skips) Skip(std::move(why));
    files_ = std::move(found.files);
    Json tokenizer = {{"type", job_.tokenizer().type()}};
    if (!job_.tokenizer().path().empty()) {
      const fs::path given(job_.tokenizer().path());
      tokenizer_path_ =
          given.is_absolute() || base_dir_.empty() ? given.string() : (fs::path(base_dir_) / given).string();
      if (fs::is_directory(tokenizer_path_)) tokenizer_path_ += "/tokenizer.json";
      absl::StatusOr<std::string> sum = Sha256OfFile(tokenizer_path_);
      if (!sum.ok()) return Annotate(sum.status(), "tokenizer.path");
      tokenizer = {{"sha256", *sum}};
    } else if (job_.tokenizer().type() == "bpe") {
      tokenizer["vocab_size"] = job_.tokenizer().vocab_size();
    } else if (job_.tokenizer().type() != "char") {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.type is '", job_.tokenizer().type(), "'; bpe or char"));
    }
    if (tokenizer_path_.empty() && !special_tokens().empty()) tokenizer["special_tokens"] = special_tokens();
    inputs_ = {{"rules", kRules}};
    inputs_.update(found.json);
    inputs_["tokenizer"] = tokenizer;
    inputs_ = AsWritten(inputs_);
    return absl::OkStatus();
  }

  std::optional<DataReport> Reuse() const {
    const absl::StatusOr<std::shared_ptr<const TokenStore>> store = TokenStore::Open(out_dir_);
    if (!store.ok() || (*store)->inputs() != inputs_.dump()) return std::nullopt;
    if (options_.write_text && !((*store)->has_text() && fs::exists(In("train.txt")) && fs::exists(In("held_out.txt"))))
      return std::nullopt;
    DataReport report = (*store)->report();
    report.reused = true;
    return report;
  }

  std::vector<std::string> special_tokens() const {
    return {job_.tokenizer().special_tokens().begin(), job_.tokenizer().special_tokens().end()};
  }
  bool by_hash() const { return job_.data().split().order() == "hash"; }

  // Cleans every document into spools_[0] (train, or everything if split in file order) and spools_[1] (held out).
  absl::Status ReadSources() {
    MILLRACE_ASSIGN_OR_RETURN(spools_[0].file, NewFile::Create(In("train.txt")));
    MILLRACE_ASSIGN_OR_RETURN(spools_[1].file, NewFile::Create(In("held_out.txt")));
    const v1::DataSpec& data = job_.data();
    const CorpusOptions options = {.strip_markup = data.clean().strip_markup(),
                                   .window_bytes = by_hash() ? data.split().window_bytes() : 0};
    const bool dedup = data.clean().dedup() == "exact";
    absl::flat_hash_set<std::string> seen;
    for (const SourceFile& file : files_) {
      CorpusSink sink;
      sink.skip = [this](std::string why) { Skip(std::move(why)); };
      sink.document = [&](absl::string_view raw) -> absl::Status {
        MILLRACE_ASSIGN_OR_RETURN(const std::string document, Clean(data.clean(), raw));
        if (document.empty()) {
          Skip(absl::StrCat(file.shown, ": nothing left after cleaning"));
          return absl::OkStatus();
        }
        const std::string sum = dedup || by_hash() ? Sha256Hex(document) : "";
        if (dedup && !seen.insert(sum).second) {
          ++report_.duplicates;
          return absl::OkStatus();
        }
        return spools_[by_hash() && IsHeldOut(sum, data.held_out())].Add(document);
      };
      const absl::Status status = ReadDocuments(file, options, sink);
      if (!status.ok()) return status;
    }
    if (spools_[0].bytes() + spools_[1].bytes() == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the sources hold no text: ", files_.size(), " files read, ", report_.skipped, " left out",
                       report_.skips.empty() ? "" : ", the first: ", report_.skips.empty() ? "" : report_.skips[0]));
    }
    return absl::OkStatus();
  }

  absl::Status Split() {
    for (Spool& spool : spools_) MILLRACE_RETURN_IF_ERROR(spool.file->Flush());
    const uint64_t documents = spools_[0].ends.size() + spools_[1].ends.size();
    if (by_hash()) {
      for (const int part : {0, 1}) {
        if (spools_[part].bytes() == 0) {
          return absl::InvalidArgumentError(
              absl::StrCat("none of ", documents, " documents fell into the ", part == 0 ? "train" : "held-out",
                           " part (held_out is ", Percent(), ", by document hash); use data.split {order: file}, ",
                           part == 0 ? "lower" : "raise", " data.held_out, lower data.split.window_bytes or add text"));
        }
        MILLRACE_ASSIGN_OR_RETURN(MappedFile map, MappedFile::Open(spools_[part].file->beside()));
        maps_.push_back(std::move(map));
        AddDocuments(maps_.back().bytes(), spools_[part].ends, 0, spools_[part].bytes(), &parts_[part]);
      }
    } else {
      MILLRACE_ASSIGN_OR_RETURN(MappedFile map, MappedFile::Open(spools_[0].file->beside()));
      maps_.push_back(std::move(map));
      const absl::string_view text = maps_.back().bytes();
      // As data[:int(n * (1 - held_out))] on the text as Python has it.
      const uint64_t characters = CountCharacters(text);
      const auto kept = static_cast<uint64_t>(static_cast<double>(characters) * (1.0 - job_.data().held_out()));
      if (kept == 0 || kept == characters) {
        return absl::InvalidArgumentError(
            absl::StrCat("the text of ", characters, " characters is too short to hold out ", Percent()));
      }
      size_t cut = 0;
      for (uint64_t passed = 0; passed < kept; ++passed) cut += FirstCharacter(text.substr(cut)).bytes;
      AddDocuments(text, spools_[0].ends, 0, cut, &parts_[0]);
      AddDocuments(text, spools_[0].ends, cut, text.size(), &parts_[1]);
    }
    report_.documents = documents;
    report_.train_documents = parts_[0].documents.size();
    report_.held_out_documents = parts_[1].documents.size();
    report_.train_bytes = parts_[0].text.size();
    report_.held_out_bytes = parts_[1].text.size();
    return absl::OkStatus();
  }

  // The documents, or pieces of them, that lie in [begin, end) of the text.
  static void AddDocuments(absl::string_view text, const std::vector<uint64_t>& ends, uint64_t begin, uint64_t end,
                           Part* part) {
    part->text = text.substr(begin, end - begin);
    uint64_t from = 0;
    for (const uint64_t to : ends) {
      const uint64_t first = std::max(from, begin), last = std::min(to, end);
      if (first < last) part->documents.push_back(text.substr(first, last - first));
      from = to;
    }
  }

  absl::Status MakeTokenizer() {
    if (!tokenizer_path_.empty()) {
      MILLRACE_ASSIGN_OR_RETURN(tokenizer_, LoadTokenizer(tokenizer_path_));
      for (const std::string& content : special_tokens()) {
        if (tokenizer_->AddedId(content)) continue;
        return absl::InvalidArgumentError(absl::StrCat("tokenizer.special_tokens: ", tokenizer_path_, " lacks '",
                                                       content, "', and a given tokenizer is used as it is"));
      }
    } else if (job_.tokenizer().type() == "bpe") {
      // Learnt from the train part alone.
      MILLRACE_ASSIGN_OR_RETURN(
          tokenizer_, TrainBpe({.vocab_size = job_.tokenizer().vocab_size(), .special_tokens = special_tokens()},
                               [this](const auto& each) { return parts_[0].ForEach(each); }));
    } else {
      // The alphabet is that of the whole text, as nanoGPT has it: a character may occur in the held-out part alone.
      MILLRACE_ASSIGN_OR_RETURN(tokenizer_, TrainCharacters(
                                                [this](const auto& each) -> absl::Status {
                                                  MILLRACE_RETURN_IF_ERROR(parts_[0].ForEach(each));
                                                  return parts_[1].ForEach(each);
                                                },
                                                special_tokens()));
    }
    report_.vocab_size = tokenizer_->vocab_size();
    return absl::OkStatus();
  }

  struct Encoded {
    std::unique_ptr<NewFile> file;
    uint64_t tokens = 0;
    std::string sha256;
  };

  absl::StatusOr<Encoded> EncodePart(const Part& part, absl::string_view name) {
    Encoded encoded;
    MILLRACE_ASSIGN_OR_RETURN(encoded.file, NewFile::Create(In(absl::StrCat(name, ".tokens"))));
    const uint64_t vocab = tokenizer_->vocab_size();
    const uint32_t width = vocab <= 65536 ? 2 : 4;
    std::string header(64, '\0');
    MILLRACE_RETURN_IF_ERROR(encoded.file->Append(header));
    std::vector<uint32_t> ids;
    std::string packed;
    uint64_t number = 0;
    for (const absl::string_view document : part.documents) {
      ++number;
      ids.clear();
      if (const auto separator = tokenizer_->end_of_text()) ids.push_back(*separator);
      if (absl::Status status = tokenizer_->EncodeOrdinary(document, &ids); !status.ok()) {
        return Annotate(status, absl::StrCat("encoding document ", number, " of the ", name, " text"));
      }
      packed.resize(ids.size() * width);
      for (size_t i = 0; i < ids.size(); ++i) std::memcpy(packed.data() + i * width, &ids[i], width);
      MILLRACE_RETURN_IF_ERROR(encoded.file->Append(packed));
      encoded.tokens += ids.size();
    }
    MILLRACE_RETURN_IF_ERROR(encoded.file->Flush());
    const uint32_t version = 1;
    std::memcpy(header.data(), "MRTOKENS", 8);
    std::memcpy(header.data() + 8, &version, 4);
    std::memcpy(header.data() + 12, &width, 4);
    std::memcpy(header.data() + 16, &vocab, 8);
    std::memcpy(header.data() + 24, &encoded.tokens, 8);
    MILLRACE_RETURN_IF_ERROR(encoded.file->Overwrite(header, 0));
    MILLRACE_ASSIGN_OR_RETURN(encoded.sha256, Sha256OfFile(encoded.file->beside()));
    return encoded;
  }

  absl::StatusOr<DataReport> Write() {
    const std::string tokenizer = tokenizer_->ToJson();
    MILLRACE_ASSIGN_OR_RETURN(const Encoded train, EncodePart(parts_[0], "train"));
    MILLRACE_ASSIGN_OR_RETURN(const Encoded held_out, EncodePart(parts_[1], "held_out"));
    report_.train_tokens = train.tokens;
    report_.held_out_tokens = held_out.tokens;

    // From here on the folder holds no whole store until the manifest is back.
    if (unlink(In("manifest.json").c_str()) != 0 && errno != ENOENT) {
      return absl::ErrnoToStatus(errno, absl::StrCat("removing ", In("manifest.json")));
    }
    MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(In("tokenizer.json"), tokenizer));
    MILLRACE_RETURN_IF_ERROR(
        WriteFileAtomically(In("tokenizer_config.json"), tokenizer_->ConfigJson(job_.model().family())));
    MILLRACE_RETURN_IF_ERROR(train.file->Commit());
    MILLRACE_RETURN_IF_ERROR(held_out.file->Commit());
    if (options_.write_text) {
      if (!by_hash()) {  // held_out.txt is still inside the one spool
        MILLRACE_RETURN_IF_ERROR(spools_[1].file->Append(parts_[1].text));
        MILLRACE_RETURN_IF_ERROR(spools_[1].file->Commit());
        MILLRACE_RETURN_IF_ERROR(WriteFileAtomically(In("train.txt"), parts_[0].text));
      } else {
        MILLRACE_RETURN_IF_ERROR(spools_[0].file->Commit());
        MILLRACE_RETURN_IF_ERROR(spools_[1].file->Commit());
      }
    }
    const std::string tokenizer_sum = Sha256Hex(tokenizer);
    const Json manifest = {
        {"format", "millrace token store"},
        {"version", 1},
        {"text", options_.write_text},
        {"inputs", inputs_},
        {"tokenizer",
         {{"kind", tokenizer_->kind()}, {"vocab_size", tokenizer_->vocab_size()}, {"sha256", tokenizer_sum}}},
        {"train",
         {{"tokens", train.tokens},
          {"bytes", report_.train_bytes},
          {"documents", report_.train_documents},
          {"sha256", train.sha256}}},
        {"held_out",
         {{"tokens", held_out.tokens},
          {"bytes", report_.held_out_bytes},
          {"documents", report_.held_out_documents},
          {"sha256", held_out.sha256}}},
        {"report",
         {{"documents", report_.documents},
          {"duplicates", report_.duplicates},
          {"skipped", report_.skipped},
          {"skips", report_.skips}}},
        {"fingerprint", Sha256Hex(absl::StrCat(tokenizer_sum, "\n", train.sha256, "\n", held_out.sha256, "\n"))}};
    MILLRACE_RETURN_IF_ERROR(
        WriteFileAtomically(In("manifest.json"), manifest.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"));
    return report_;
  }

  const v1::JobSpec& job_;
  const std::string base_dir_;
  const std::string out_dir_;
  const PrepareOptions options_;

  DataReport report_;
  Json inputs_;
  std::vector<SourceFile> files_;
  std::string tokenizer_path_;  // empty: make one
  Spool spools_[2];
  std::vector<MappedFile> maps_;  // of the spools
  Part parts_[2];                 // train, held out
  std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace

absl::StatusOr<DataReport> PrepareData(const v1::JobSpec& job, const std::string& base_dir, const std::string& out_dir,
                                       const PrepareOptions& options) {
  return Preparation(job, base_dir, out_dir, options).Run();
}

}  // namespace millrace::text
