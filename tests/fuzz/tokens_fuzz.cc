// The file of tokens: any bytes give owners whose lines read the same again, or an error.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/tokens.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace millrace;
  const auto owners = ParseTokens(absl::string_view(reinterpret_cast<const char*>(data), size), "fuzz");
  if (!owners.ok()) {
    if (owners.status().message().size() > 1000) abort();
    return 0;
  }
  std::string again;
  for (const TokenOwner& owner : *owners) {
    const absl::string_view digest(reinterpret_cast<const char*>(owner.digest.data()), owner.digest.size());
    absl::StrAppend(&again, owner.name, " ", RoleName(owner.role), " ", absl::BytesToHexString(digest), "\n");
  }
  const auto same = ParseTokens(again, "again");
  if (!same.ok() || same->size() != owners->size()) abort();
  for (size_t i = 0; i < same->size(); ++i) {
    if ((*same)[i].name != (*owners)[i].name || (*same)[i].role != (*owners)[i].role) abort();
    if ((*same)[i].digest != (*owners)[i].digest) abort();
  }
  return 0;
}
