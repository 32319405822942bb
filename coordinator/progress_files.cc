#include "coordinator/progress_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/checksum.h"
#include "common/files.h"
#include "common/status.h"
#include "coordinator/measurements.h"
#include "nlohmann/json.hpp"

namespace millrace::coordinator {
namespace {

using Json = nlohmann::ordered_json;

// ---- lines of JSON and of a table ----

constexpr char kColumns[] =
    "kind,unix_ms,phase,step,tokens,loss,learning_rate,gradient_norm,tokens_per_second,seconds_training,saturated,"
    "workers,perplexity,bits_per_byte,best,statistics\n";

// The shortest digits that are the number again; nothing for one that is not finite.
std::string Digits(double value) { return std::isfinite(value) ? Json(value).dump() : ""; }

// NAME=VALUE;NAME=VALUE. Names are words of ours, without what a table's cell would have to quote.
std::string Cell(const std::map<std::string, double>& statistics) {
  return absl::StrJoin(statistics, ";", [](std::string* out, const auto& statistic) {
    absl::StrAppend(out, statistic.first, "=", Digits(statistic.second));
  });
}

std::map<std::string, double> Sorted(const google::protobuf::Map<std::string, double>& statistics) {
  return {statistics.begin(), statistics.end()};
}

Json Line(absl::string_view kind, int64_t unix_ms, const std::string& phase, uint64_t step) {
  return {{"kind", kind}, {"unix_ms", unix_ms}, {"phase", phase}, {"step", step}};
}

// ---- TensorBoard's event files ----
//
// file    = record(version event) record*
// record  = length(u64) masked(length) data masked(data)     little-endian; masked: CRC-32C, turned and shifted (u32)
// data    = the message tensorflow.Event in Protocol Buffers' encoding, of which these fields are used:
//   Event       1 wall_time (double)  2 step (int64)  3 file_version (string)  5 summary  7 session_log
//   Summary     1 value (repeated)
//   Value       1 tag (string)  2 simple_value (float)  8 tensor  9 metadata
//   Tensor      1 dtype (enum; 7: string)  2 shape  8 string_val (repeated)     Shape: 2 dim     Dim: 1 size (int64)
//   Metadata    1 plugin_data     PluginData: 1 plugin_name (string)
//   SessionLog  1 status (enum; 1: START)

constexpr size_t kRecordHead = 12, kRecordTail = 4;

uint32_t Masked(absl::string_view bytes) {
  const uint32_t sum = Crc32c(bytes.data(), bytes.size());
  return ((sum >> 15) | (sum << 17)) + 0xa282ead8u;
}

template <typename T>
void PutRaw(T value, std::string* out) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));  // the machine is little-endian (docs/arithmetic.md)
  out->append(bytes, sizeof(T));
}

template <typename T>
T GetRaw(absl::string_view bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return value;
}

void PutVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
void PutTag(int field, WireType type, std::string* out) { PutVarint(static_cast<uint64_t>(field) << 3 | type, out); }

void PutBytes(int field, absl::string_view bytes, std::string* out) {
  PutTag(field, kBytes, out);
  PutVarint(bytes.size(), out);
  out->append(bytes.data(), bytes.size());
}

std::string Record(absl::string_view data) {
  std::string record;
  PutRaw<uint64_t>(data.size(), &record);
  PutRaw(Masked(record), &record);
  absl::StrAppend(&record, data);
  PutRaw(Masked(data), &record);
  return record;
}

std::string Event(int64_t unix_ms, uint64_t step) {
  std::string event;
  PutTag(1, kFixed64, &event);
  PutRaw(static_cast<double>(unix_ms) / 1000, &event);
  PutTag(2, kVarint, &event);
  PutVarint(step, &event);
  return event;
}

std::string Scalars(int64_t unix_ms, uint64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    std::string one;
    PutBytes(1, tag, &one);
    PutTag(2, kFixed32, &one);
    PutRaw(static_cast<float>(value), &one);
    PutBytes(1, one, &summary);
  }
  std::string event = Event(unix_ms, step);
  PutBytes(5, summary, &event);
  return Record(event);
}

// As Markdown: a block in which white space is kept.
std::string Verbatim(absl::string_view text) {
  return absl::StrCat("    ", absl::StrReplaceAll(text, {{"\n", "\n    "}}));
}

// The texts of the plugin that shows them, each under a tag of its own.
std::string Texts(int64_t unix_ms, uint64_t step, const std::vector<std::pair<std::string, std::string>>& texts) {
  std::string summary;
  for (const auto& [tag, text] : texts) {
    std::string dim, shape, tensor, plugin, metadata, one;
    PutTag(1, kVarint, &dim);
    PutVarint(1, &dim);
    PutBytes(2, dim, &shape);
    PutTag(1, kVarint, &tensor);
    PutVarint(7, &tensor);
    PutBytes(2, shape, &tensor);
    PutBytes(8, text, &tensor);
    PutBytes(1, "text", &plugin);
    PutBytes(1, plugin, &metadata);
    PutBytes(1, tag, &one);
    PutBytes(8, tensor, &one);
    PutBytes(9, metadata, &one);
    PutBytes(1, one, &summary);
  }
  std::string event = Event(unix_ms, step);
  PutBytes(5, summary, &event);
  return Record(event);
}

// Of a phase that goes on: readers forget what they know of this step and of later ones.
std::string SessionStart(int64_t unix_ms, uint64_t first_step) {
  std::string event = Event(unix_ms, first_step), session;
  PutTag(1, kVarint, &session);
  PutVarint(1, &session);
  PutBytes(7, session, &event);
  return Record(event);
}

}  // namespace

size_t WholeLines(absl::string_view text) {
  const size_t end = text.rfind('\n');
  return end == absl::string_view::npos ? 0 : end + 1;
}

size_t WholeRecords(absl::string_view text) {
  size_t whole = 0;
  for (;;) {
    const absl::string_view rest = text.substr(whole);
    if (rest.size() < kRecordHead + kRecordTail) return whole;
    const auto length = GetRaw<uint64_t>(rest);
    if (GetRaw<uint32_t>(rest.substr(8)) != Masked(rest.substr(0, 8))) return whole;
    if (length > rest.size() - kRecordHead - kRecordTail) return whole;
    const absl::string_view data = rest.substr(kRecordHead, length);
    if (GetRaw<uint32_t>(rest.substr(kRecordHead + length)) != Masked(data)) return whole;
    whole += kRecordHead + length + kRecordTail;
  }
}

absl::StatusOr<std::unique_ptr<GrowingFile>> GrowingFile::Open(const std::string& path,
                                                               size_t (*whole)(absl::string_view)) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor < 0) return ErrnoStatus(errno, "write", path);
  std::unique_ptr<GrowingFile> file(new GrowingFile(path, descriptor, 0));
  MILLRACE_ASSIGN_OR_RETURN(const MappedFile bytes, MappedFile::Open(path));
  file->size_ = whole(bytes.bytes());
  if (file->size_ < bytes.bytes().size() && ftruncate(descriptor, static_cast<off_t>(file->size_)) != 0) {
    return ErrnoStatus(errno, "cut", path);
  }
  return file;
}

GrowingFile::~GrowingFile() { close(descriptor_); }

absl::Status GrowingFile::Append(absl::string_view bytes) {
  ssize_t written;
  do {
    written = write(descriptor_, bytes.data(), bytes.size());
  } while (written < 0 && errno == EINTR);
  if (written == static_cast<ssize_t>(bytes.size())) {
    size_ += bytes.size();
    return absl::OkStatus();
  }
  // A disk that is nearly full takes a part.
  const absl::Status failed = ErrnoStatus(written < 0 ? errno : ENOSPC, "write", path_);
  if (written > 0 && ftruncate(descriptor_, static_cast<off_t>(size_)) != 0) {
    return absl::DataLossError(absl::StrCat(failed.message(), "; a part of a record stays at its end"));
  }
  return failed;
}

absl::Status GrowingFile::Cut(uint64_t size) {
  if (ftruncate(descriptor_, static_cast<off_t>(size)) != 0) return ErrnoStatus(errno, "cut", path_);
  size_ = size;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ProgressFiles>> ProgressFiles::Open(const std::string& directory) {
  std::unique_ptr<ProgressFiles> files(new ProgressFiles(directory));
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(directory));
  MILLRACE_ASSIGN_OR_RETURN(files->lines_, GrowingFile::Open(absl::StrCat(directory, "/metrics.jsonl"), &WholeLines));
  MILLRACE_ASSIGN_OR_RETURN(files->table_, GrowingFile::Open(absl::StrCat(directory, "/metrics.csv"), &WholeLines));
  if (files->table_->empty()) MILLRACE_RETURN_IF_ERROR(files->table_->Append(kColumns));
  return files;
}

// The phase's event file: the one that is there, or a new one.
absl::StatusOr<GrowingFile*> ProgressFiles::EventsOf(const std::string& phase, int64_t unix_ms) {
  std::unique_ptr<GrowingFile>& file = events_[phase];
  if (file != nullptr) return file.get();
  const std::string folder = absl::StrCat(directory_, "/tensorboard/", phase);
  MILLRACE_RETURN_IF_ERROR(MakeDirectories(folder));
  constexpr absl::string_view kPrefix = "events.out.tfevents.";
  std::string name;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string found = entry.path().filename().string();
    // Other programs may have added files of their own to the run.
    if (absl::StartsWith(found, kPrefix) && absl::EndsWith(found, ".millrace")) name = std::max(name, found);
  }
  if (error) return absl::UnavailableError(absl::StrCat("cannot read ", folder, ": ", error.message()));
  if (name.empty()) name = absl::StrCat(kPrefix, unix_ms / 1000, ".millrace");
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<GrowingFile> opened,
                            GrowingFile::Open(absl::StrCat(folder, "/", name), &WholeRecords));
  if (opened->empty()) {
    std::string event;
    PutTag(1, kFixed64, &event);
    PutRaw(static_cast<double>(unix_ms) / 1000, &event);
    PutBytes(3, "brain.Event:2", &event);
    MILLRACE_RETURN_IF_ERROR(opened->Append(Record(event)));
  }
  file = std::move(opened);
  return file.get();
}

absl::Status ProgressFiles::Add(const v1::JobEvent& event) {
  const int64_t at = event.unix_ms();
  Json line;
  std::string row, phase;
  uint64_t step = 0;
  std::vector<std::pair<std::string, double>> scalars;
  Measure(event, &scalars);
  for (auto& [name, value] : scalars) name = TensorBoardTag(name);
  if (event.has_step()) {
    const v1::StepEvent& about = event.step();
    const std::map<std::string, double> statistics = Sorted(about.statistics());
    phase = about.phase();
    step = about.step();
    line = Line("step", at, phase, step);
    line["max_steps"] = about.max_steps();
    line["tokens"] = about.tokens();
    line["loss"] = about.loss();
    line["learning_rate"] = about.learning_rate();
    line["gradient_norm"] = about.gradient_norm();
    line["tokens_per_second"] = about.tokens_per_second();
    line["seconds_training"] = about.seconds_training();
    line["saturated"] = about.saturated();
    line["workers"] = about.workers();
    if (!statistics.empty()) line["statistics"] = statistics;
    row = absl::StrCat("step,", at, ",", phase, ",", step, ",", about.tokens(), ",", Digits(about.loss()), ",",
                       Digits(about.learning_rate()), ",", Digits(about.gradient_norm()), ",",
                       Digits(about.tokens_per_second()), ",", Digits(about.seconds_training()), ",", about.saturated(),
                       ",", about.workers(), ",,,,", Cell(statistics), "\n");
    scalars.emplace_back("train/tokens", static_cast<double>(about.tokens()));
  } else if (event.has_evaluation()) {
    const v1::EvaluationEvent& about = event.evaluation();
    const std::map<std::string, double> statistics = Sorted(about.statistics());
    phase = about.phase();
    step = about.step();
    const bool text = about.bytes() > 0;  // of which there are a perplexity and bits
    line = Line("evaluation", at, phase, step);
    line["tokens"] = about.tokens();
    line["loss"] = about.loss();
    if (text) {
      line["perplexity"] = about.perplexity();
      line["bits_per_byte"] = about.bits_per_byte();
    }
    line["best"] = about.best();
    if (!statistics.empty()) line["statistics"] = statistics;
    row =
        absl::StrCat("evaluation,", at, ",", phase, ",", step, ",", about.tokens(), ",", Digits(about.loss()),
                     ",,,,,,,", text ? Digits(about.perplexity()) : "", ",", text ? Digits(about.bits_per_byte()) : "",
                     ",", about.best() ? "true" : "false", ",", Cell(statistics), "\n");
    if (text) {
      scalars.emplace_back("held_out/perplexity", about.perplexity());
      scalars.emplace_back("held_out/bits_per_byte", about.bits_per_byte());
    }
  } else {
    return event.has_samples() ? AddSamples(event.samples(), at) : absl::OkStatus();
  }
  MILLRACE_RETURN_IF_ERROR(lines_->Append(absl::StrCat(line.dump(), "\n")));
  MILLRACE_RETURN_IF_ERROR(table_->Append(row));
  MILLRACE_ASSIGN_OR_RETURN(GrowingFile* const events, EventsOf(phase, at));
  return events->Append(Scalars(at, step, scalars));
}

absl::Status ProgressFiles::Restart(absl::string_view phase, uint64_t step, int64_t unix_ms) {
  const std::string name(phase);
  MILLRACE_RETURN_IF_ERROR(lines_->Append(absl::StrCat(Line("start", unix_ms, name, step).dump(), "\n")));
  MILLRACE_RETURN_IF_ERROR(table_->Append(absl::StrCat("start,", unix_ms, ",", phase, ",", step, ",,,,,,,,,,,,\n")));
  MILLRACE_ASSIGN_OR_RETURN(GrowingFile* const events, EventsOf(name, unix_ms));
  MILLRACE_RETURN_IF_ERROR(events->Append(SessionStart(unix_ms, step + 1)));
  return CutSamples(name, step);
}

// Only jobs whose models write have such a file.
absl::Status ProgressFiles::OpenSamples() {
  if (samples_ != nullptr) return absl::OkStatus();
  MILLRACE_ASSIGN_OR_RETURN(samples_, GrowingFile::Open(SamplesPath(), &WholeLines));
  return absl::OkStatus();
}

// Without times: the file is the same whoever trained the job, and however often it was interrupted.
absl::Status ProgressFiles::AddSamples(const v1::SamplesEvent& samples, int64_t unix_ms) {
  std::string lines;
  std::vector<std::pair<std::string, std::string>> texts;
  for (const v1::Sample& sample : samples.samples()) {
    const Json line = {{"phase", samples.phase()}, {"step", samples.step()},    {"prompt", sample.prompt()},
                       {"text", sample.text()},    {"tokens", sample.tokens()}, {"ended", sample.ended()}};
    absl::StrAppend(&lines, line.dump(), "\n");
    texts.emplace_back(absl::StrCat("samples/", texts.size()),
                       absl::StrCat(Verbatim(sample.prompt()), "\n\n→\n\n", Verbatim(sample.text())));
  }
  MILLRACE_RETURN_IF_ERROR(OpenSamples());
  MILLRACE_RETURN_IF_ERROR(samples_->Append(lines));
  MILLRACE_ASSIGN_OR_RETURN(GrowingFile* const events, EventsOf(samples.phase(), unix_ms));
  return events->Append(Texts(unix_ms, samples.step(), texts));
}

// Drops what the phase wrote after `step`, or all if it begins anew; behind that nothing stands.
absl::Status ProgressFiles::CutSamples(const std::string& phase, uint64_t step) {
  std::error_code error;
  if (!std::filesystem::exists(SamplesPath(), error)) return absl::OkStatus();
  MILLRACE_RETURN_IF_ERROR(OpenSamples());
  MILLRACE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(SamplesPath()));
  const absl::string_view text = file.bytes();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    const Json line = Json::parse(text.substr(begin, end - begin), nullptr, /*allow_exceptions=*/false);
    if (line.is_object() && line.value("phase", Json()) == phase) {
      const Json at = line.value("step", Json());
      if (at.is_number_unsigned() && (step == 0 || at.get<uint64_t>() > step)) return samples_->Cut(begin);
    }
    begin = end;
  }
  return absl::OkStatus();
}

}  // namespace millrace::coordinator
