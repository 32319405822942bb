#include "text/corpus.h"

#include <algorithm>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/status.h"
#include "nlohmann/json.hpp"
#include "text/byte_stream.h"
#include "text/markup.h"
#include "text/unicode.h"

namespace millrace::text {
namespace {

using Json = nlohmann::json;

constexpr size_t kChunkBytes = 1 << 20;
constexpr absl::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool IsBlank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

std::string NotUtf8(absl::string_view text, size_t at, uint64_t offset) {
  std::string why = absl::StrFormat("byte %d (0x%02x) is not UTF-8", offset + at, static_cast<uint8_t>(text[at]));
  if (offset == 0 && (absl::StartsWith(text, "\xFF\xFE") || absl::StartsWith(text, "\xFE\xFF"))) {
    why += "; the file looks like UTF-16";
  }
  return why;
}

absl::StatusOr<std::string> ReadWhole(ByteStream* stream, absl::string_view shown) {
  std::string text;
  for (;;) {
    const size_t before = text.size();
    text.resize(before + std::max<size_t>(kChunkBytes, before / 2));
    absl::StatusOr<size_t> count = stream->Read(text.data() + before, text.size() - before);
    if (!count.ok()) return count.status();
    text.resize(before + *count);
    if (*count == 0) return text;
    if (text.size() > kMaxDocumentBytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(shown, ": a document of more than ", kMaxDocumentBytes, " bytes"));
    }
  }
}

// Checks a document and passes it on; `offset` is its first byte's in the unpacked file.
absl::Status Give(absl::string_view text, uint64_t offset, const SourceFile& file, const CorpusSink& sink) {
  if (const std::optional<size_t> bad = FirstInvalidUtf8(text)) {
    sink.skip(absl::StrCat(file.shown, ": ", NotUtf8(text, *bad, offset)));
    return absl::OkStatus();
  }
  if (offset == 0) absl::ConsumePrefix(&text, kByteOrderMark);
  if (text.empty()) {
    sink.skip(absl::StrCat(file.shown, ": empty"));
    return absl::OkStatus();
  }
  return sink.document(text);
}

absl::Status ReadText(ByteStream* stream, const SourceFile& file, const CorpusOptions& options,
                      const CorpusSink& sink) {
  if (options.window_bytes == 0) {
    MILLRACE_ASSIGN_OR_RETURN(const std::string text, ReadWhole(stream, file.shown));
    return Give(text, 0, file, sink);
  }
  uint64_t bytes = 0;
  ParagraphCutter cutter(options.window_bytes,
                         [&](absl::string_view text, uint64_t offset) { return Give(text, offset, file, sink); });
  std::vector<char> chunk(kChunkBytes);
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const size_t count, stream->Read(chunk.data(), chunk.size()));
    if (count == 0) break;
    bytes += count;
    MILLRACE_RETURN_IF_ERROR(cutter.Add({chunk.data(), count}));
  }
  if (bytes == 0) sink.skip(absl::StrCat(file.shown, ": empty"));
  return cutter.Finish();
}

absl::Status ReadMarkup(ByteStream* stream, const SourceFile& file, const CorpusOptions& options,
                        const CorpusSink& sink) {
  MILLRACE_ASSIGN_OR_RETURN(const std::string markup, ReadWhole(stream, file.shown));
  const auto give = [&](absl::string_view text) {
    absl::ConsumePrefix(&text, kByteOrderMark);
    std::string stripped(text);
    if (options.strip_markup && file.format == Format::kHtml) {
      absl::StatusOr<std::string> plain = HtmlToText(text);
      if (!plain.ok()) return Annotate(plain.status(), file.shown);
      stripped = *std::move(plain);
    } else if (options.strip_markup) {
      stripped = MarkdownToText(text);
    }
    if (stripped.empty()) {
      sink.skip(absl::StrCat(file.shown, ": no text"));
      return absl::OkStatus();
    }
    if (options.window_bytes == 0) return sink.document(stripped);
    ParagraphCutter cutter(options.window_bytes, [&](absl::string_view part, uint64_t) { return sink.document(part); });
    MILLRACE_RETURN_IF_ERROR(cutter.Add(stripped));
    return cutter.Finish();
  };
  CorpusSink checked = {.document = give, .skip = sink.skip};
  return Give(markup, 0, file, checked);
}

}  // namespace

absl::StatusOr<std::string> FieldOfJsonLine(absl::string_view line, absl::string_view field) {
  constexpr int kMaxDepth = 256;
  const auto bounded = [](int depth, Json::parse_event_t, Json&) { return depth <= kMaxDepth; };
  Json value = Json::parse(line.begin(), line.end(), bounded, /*allow_exceptions=*/false);
  if (value.is_discarded()) return absl::InvalidArgumentError("not JSON");
  std::string reached;
  for (const absl::string_view name : absl::StrSplit(field, '.')) {
    if (!value.is_object()) {
      return absl::InvalidArgumentError(reached.empty() ? "not a JSON object"
                                                        : absl::StrCat("the field '", reached, "' is no object"));
    }
    absl::StrAppend(&reached, reached.empty() ? "" : ".", name);
    const auto it = value.find(std::string(name));
    if (it == value.end()) return absl::InvalidArgumentError(absl::StrCat("there is no field '", reached, "'"));
    Json inner = std::move(*it);
    value = std::move(inner);
  }
  if (!value.is_string()) return absl::InvalidArgumentError(absl::StrCat("the field '", reached, "' is no string"));
  return std::move(value.get_ref<std::string&>());
}

absl::Status ReadLines(const SourceFile& file, const LineSink& line_sink,
                       const std::function<void(std::string)>& skip) {
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<ByteStream> stream, OpenByteStream(file.path));
  std::string pending;
  std::vector<char> chunk(kChunkBytes);
  uint64_t line_number = 0;
  uint64_t offset = 0;
  const auto give = [&](absl::string_view line) {
    ++line_number;
    const uint64_t line_offset = offset;
    offset += line.size() + 1;
    if (line_number == 1) absl::ConsumePrefix(&line, kByteOrderMark);
    if (line.find_first_not_of(" \t\r") == absl::string_view::npos) return absl::OkStatus();
    if (const std::optional<size_t> bad = FirstInvalidUtf8(line)) {
      skip(absl::StrCat(file.shown, ":", line_number, ": ", NotUtf8(line, *bad, line_offset)));
      return absl::OkStatus();
    }
    return line_sink(line, line_number);
  };
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const size_t count, stream->Read(chunk.data(), chunk.size()));
    if (count == 0) break;
    absl::string_view rest(chunk.data(), count);
    for (size_t end; (end = rest.find('\n')) != absl::string_view::npos; rest.remove_prefix(end + 1)) {
      absl::StrAppend(&pending, rest.substr(0, end));
      MILLRACE_RETURN_IF_ERROR(give(pending));
      pending.clear();
    }
    absl::StrAppend(&pending, rest);
    if (pending.size() > kMaxDocumentBytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat(file.shown, ":", line_number + 1, ": a line of more than ", kMaxDocumentBytes, " bytes"));
    }
  }
  if (!pending.empty()) MILLRACE_RETURN_IF_ERROR(give(pending));
  if (line_number == 0) skip(absl::StrCat(file.shown, ": empty"));
  return absl::OkStatus();
}

absl::Status ReadDocuments(const SourceFile& file, const CorpusOptions& options, const CorpusSink& sink) {
  if (file.format == Format::kJsonLines) {
    const auto line = [&](absl::string_view json, uint64_t number) {
      const absl::StatusOr<std::string> text = FieldOfJsonLine(json, file.field);
      if (text.ok() && !text->empty()) return sink.document(*text);
      sink.skip(absl::StrCat(file.shown, ":", number, ": ", text.ok() ? "empty" : text.status().message()));
      return absl::OkStatus();
    };
    return ReadLines(file, line, sink.skip);
  }
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<ByteStream> stream, OpenByteStream(file.path));
  return file.format == Format::kText ? ReadText(stream.get(), file, options, sink)
                                      : ReadMarkup(stream.get(), file, options, sink);
}

absl::Status ParagraphCutter::Emit(size_t size) {
  const absl::Status status = sink_(absl::string_view(pending_).substr(0, size), offset_);
  pending_.erase(0, size);
  offset_ += size;
  scanned_ = 0;
  return status;
}

absl::Status ParagraphCutter::Add(absl::string_view bytes) {
  // In pieces, so that taking documents off the front of `pending_` stays cheap.
  while (!bytes.empty()) {
    const size_t piece = std::min<size_t>(bytes.size(), window_ * 8);
    absl::StrAppend(&pending_, bytes.substr(0, piece));
    bytes.remove_prefix(piece);
    // A cut lies before byte `scanned_`, which is known: a blank line's end shows only with what follows it.
    while (scanned_ < pending_.size()) {
      const size_t at = scanned_++;
      if (at < window_) continue;
      const char here = pending_[at];
      const bool continues = (static_cast<unsigned char>(here) & 0xC0) == 0x80;
      if ((at >= 8 * window_ && !continues) || at >= 8 * window_ + 4 ||
          (at >= 4 * window_ && pending_[at - 1] == '\n')) {
        MILLRACE_RETURN_IF_ERROR(Emit(at));
        continue;
      }
      if (IsBlank(here) || here == '\n') continue;
      // The first character of a line, after a blank line?
      size_t line = at;
      while (line > 0 && IsBlank(pending_[line - 1])) --line;
      if (line < std::max<uint64_t>(window_, 1) || pending_[line - 1] != '\n') continue;
      size_t before = line - 1;
      while (before > 0 && IsBlank(pending_[before - 1])) --before;
      if (before > 0 && pending_[before - 1] == '\n') MILLRACE_RETURN_IF_ERROR(Emit(line));
    }
  }
  return absl::OkStatus();
}

absl::Status ParagraphCutter::Finish() { return pending_.empty() ? absl::OkStatus() : Emit(pending_.size()); }

}  // namespace millrace::text
