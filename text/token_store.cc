#include "text/token_store.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace millrace::text {
namespace {

static_assert(std::endian::native == std::endian::little, "tokens are read as they lie in the file");

using Json = nlohmann::ordered_json;

constexpr absl::string_view kMagic = "MRTOKENS";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeaderBytes = 64;
constexpr uint64_t kMaxManifestBytes = 256 << 20;

template <typename T>
T Load(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
uint64_t LargestOf(const char* tokens, uint64_t count) {
  T largest = 0;
  for (uint64_t i = 0; i < count; ++i) largest = std::max(largest, Load<T>(tokens + i * sizeof(T)));
  return largest;
}

absl::Status Broken(const std::string& what) {
  return absl::DataLossError(
      absl::StrCat(what, "; prepare the data again (millrace data prepare, or remove the folder)"));
}

uint64_t Number(const Json& object, const char* section, const char* name) {
  if (!object.is_object() || !object.contains(section)) return 0;
  const Json& inner = object[section];
  if (!inner.is_object() || !inner.contains(name) || !inner[name].is_number_unsigned()) return 0;
  return inner[name].get<uint64_t>();
}

std::string Text(const Json& object, const char* section, const char* name) {
  if (!object.is_object() || !object.contains(section)) return "";
  const Json& inner = object[section];
  return inner.is_object() && inner.contains(name) && inner[name].is_string() ? inner[name].get<std::string>() : "";
}

}  // namespace

absl::StatusOr<TokenFile> TokenFile::Parse(absl::string_view bytes, absl::string_view name) {
  if (bytes.size() < kHeaderBytes || bytes.substr(0, kMagic.size()) != kMagic) {
    return Broken(absl::StrCat(name, " is no token file: ", bytes.size(), " bytes, which do not begin with ", kMagic,
                               " and its header"));
  }
  const auto version = Load<uint32_t>(bytes.data() + 8);
  if (version != kVersion)
    return Broken(absl::StrCat(name, " has version ", version, "; this program reads ", kVersion));
  TokenFile file;
  file.width_ = Load<uint32_t>(bytes.data() + 12);
  file.vocab_ = Load<uint64_t>(bytes.data() + 16);
  file.count_ = Load<uint64_t>(bytes.data() + 24);
  file.tokens_ = bytes.data() + kHeaderBytes;
  if (file.vocab_ == 0 || file.vocab_ > (uint64_t{1} << 32) || file.width_ != (file.vocab_ <= 65536 ? 2u : 4u)) {
    return Broken(absl::StrCat(name, ": a vocabulary of ", file.vocab_, " with tokens of ", file.width_, " bytes"));
  }
  const uint64_t body = bytes.size() - kHeaderBytes;
  if (file.count_ > body / file.width_ || file.count_ * file.width_ != body) {
    return Broken(absl::StrCat(name, " is ", file.count_ > body / file.width_ ? "truncated" : "too long",
                               ": its header promises ", file.count_, " tokens of ", file.width_, " bytes, and ", body,
                               " bytes follow"));
  }
  if (file.count_ > 0) {
    const uint64_t largest = file.width_ == 2 ? LargestOf<uint16_t>(file.tokens_, file.count_)
                                              : LargestOf<uint32_t>(file.tokens_, file.count_);
    if (largest >= file.vocab_)
      return Broken(absl::StrCat(name, " holds token ", largest, ", beyond its vocabulary of ", file.vocab_));
  }
  return file;
}

uint32_t TokenFile::operator[](uint64_t index) const {
  return width_ == 2 ? Load<uint16_t>(tokens_ + 2 * index) : Load<uint32_t>(tokens_ + 4 * index);
}

absl::StatusOr<std::shared_ptr<const TokenStore>> TokenStore::Open(const std::string& dir) {
  const std::string manifest_path = dir + "/manifest.json";
  absl::StatusOr<std::string> manifest = ReadFile(manifest_path, kMaxManifestBytes);
  if (!manifest.ok()) return Annotate(manifest.status(), absl::StrCat("no prepared data in ", dir));
  const Json json = Json::parse(*manifest, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object() || json.value("format", Json()) != Json("millrace token store")) {
    return Broken(absl::StrCat(manifest_path, " is no manifest of a token store"));
  }
  if (json.value("version", Json()) != Json(kVersion)) {
    return Broken(absl::StrCat(manifest_path, " has another version than ", kVersion));
  }

  auto store = std::shared_ptr<TokenStore>(new TokenStore());
  std::string sums;
  const auto check = [&](absl::string_view bytes, const std::string& name, const char* section) {
    const std::string sum = Sha256Hex(bytes);
    absl::StrAppend(&sums, sum, "\n");
    if (sum == Text(json, section, "sha256")) return absl::OkStatus();
    return Broken(absl::StrCat(name, " was altered: its SHA-256 is ", sum, ", the manifest says '",
                               Text(json, section, "sha256"), "'"));
  };

  const std::string tokenizer_path = dir + "/tokenizer.json";
  MILLRACE_ASSIGN_OR_RETURN(const std::string tokenizer, ReadFile(tokenizer_path, kMaxManifestBytes));
  MILLRACE_RETURN_IF_ERROR(check(tokenizer, tokenizer_path, "tokenizer"));
  MILLRACE_ASSIGN_OR_RETURN(store->tokenizer_, ParseTokenizer(tokenizer, tokenizer_path));

  for (const char* part : {"train", "held_out"}) {
    const std::string path = absl::StrCat(dir, "/", part, ".tokens");
    MILLRACE_ASSIGN_OR_RETURN(MappedFile map, MappedFile::Open(path));
    // The header first: it says truncated where a checksum could only say altered.
    MILLRACE_ASSIGN_OR_RETURN(const TokenFile file, TokenFile::Parse(map.bytes(), path));
    MILLRACE_RETURN_IF_ERROR(check(map.bytes(), path, part));
    if (file.vocab_size() != store->vocab_size()) {
      return Broken(absl::StrCat(path, " is of a vocabulary of ", file.vocab_size(), ", tokenizer.json of ",
                                 store->vocab_size()));
    }
    (part == absl::string_view("train") ? store->train_ : store->held_out_) = file;
    store->maps_.push_back(std::move(map));
  }

  store->token_bytes_ = store->tokenizer_->TextBytes();
  store->fingerprint_ = Sha256Hex(sums);
  if (json.value("fingerprint", Json()) != Json(store->fingerprint_)) {
    return Broken(absl::StrCat(manifest_path, ": the fingerprint is not that of its parts"));
  }
  store->inputs_ = json.value("inputs", Json()).dump();
  store->has_text_ = json.value("text", Json()) == Json(true);
  DataReport& report = store->report_;
  report.documents = Number(json, "report", "documents");
  report.duplicates = Number(json, "report", "duplicates");
  report.skipped = Number(json, "report", "skipped");
  if (const Json skips = json.value("report", Json::object()).value("skips", Json()); skips.is_array()) {
    for (const Json& skip : skips) {
      if (skip.is_string()) report.skips.push_back(skip.get<std::string>());
    }
  }
  report.train_documents = Number(json, "train", "documents");
  report.held_out_documents = Number(json, "held_out", "documents");
  report.train_bytes = Number(json, "train", "bytes");
  report.held_out_bytes = Number(json, "held_out", "bytes");
  report.train_tokens = store->train_.size();
  report.held_out_tokens = store->held_out_.size();
  report.vocab_size = store->vocab_size();
  return std::shared_ptr<const TokenStore>(std::move(store));
}

}  // namespace millrace::text
