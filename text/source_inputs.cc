#include "text/source_inputs.h"

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/status.h"
#include "text/byte_stream.h"

namespace millrace::text {
namespace {
using Json = nlohmann::ordered_json;
constexpr size_t kBufferBytes = 1 << 20;
}  // namespace

absl::StatusOr<std::string> Sha256OfFile(const std::string& path) {
  MILLRACE_ASSIGN_OR_RETURN(const std::unique_ptr<ByteStream> stream, OpenPackedStream(path));
  Sha256 sum;
  std::vector<char> buffer(kBufferBytes);
  for (;;) {
    MILLRACE_ASSIGN_OR_RETURN(const size_t count, stream->Read(buffer.data(), buffer.size()));
    if (count == 0) return sum.HexDigest();
    sum.Update(absl::string_view(buffer.data(), count));
  }
}

absl::StatusOr<SourceInputs> FindInputs(const v1::DataSpec& data, const std::string& base_dir) {
  if (!(data.held_out() > 0 && data.held_out() < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.held_out is ", data.held_out(), "; it must lie between 0 and 1"));
  }
  if (data.split().order() != "hash" && data.split().order() != "file") {
    return absl::InvalidArgumentError(absl::StrCat("data.split.order is '", data.split().order(), "'; hash or file"));
  }
  MILLRACE_ASSIGN_OR_RETURN(SourceFiles found, FindSources(data, base_dir));
  SourceInputs inputs;
  inputs.skips = std::move(found.skips);
  Json sources = Json::array();
  for (SourceFile& file : found.files) {
    const absl::StatusOr<std::string> sum = Sha256OfFile(file.path);
    if (!sum.ok() && file.explicitly_named) return sum.status();
    if (!sum.ok()) {
      inputs.skips.push_back(std::string(sum.status().message()));
      continue;
    }
    sources.push_back(
        {{"path", file.shown}, {"format", static_cast<int>(file.format)}, {"field", file.field}, {"sha256", *sum}});
    inputs.files.push_back(std::move(file));
  }
  const v1::CleanSpec& clean = data.clean();
  inputs.json = {{"sources", sources},
                 {"clean",
                  {{"unicode", clean.unicode()},
                   {"strip_markup", clean.strip_markup()},
                   {"lowercase", clean.lowercase()},
                   {"punctuation", clean.punctuation()},
                   {"control", clean.control()},
                   {"dedup", clean.dedup()}}},
                 {"held_out", data.held_out()},
                 {"split", {{"order", data.split().order()}, {"window_bytes", data.split().window_bytes()}}}};
  return inputs;
}

Json AsWritten(const Json& inputs) { return Json::parse(inputs.dump(-1, ' ', false, Json::error_handler_t::replace)); }

bool IsHeldOut(absl::string_view sha256, double held_out) {
  uint64_t bits = 0;
  return absl::SimpleHexAtoi(sha256.substr(0, 16), &bits) && static_cast<double>(bits) * 0x1p-64 < held_out;
}

}  // namespace millrace::text
