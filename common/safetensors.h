// Reads and writes safetensors files, as Hugging Face defines them.
//
//   file   = u64 length, little-endian; header of that length; data
//   header = JSON padded with spaces: {"__metadata__": {TEXT: TEXT, …},
//                                      NAME: {"dtype": "F32", "shape": [N, …], "data_offsets": [BEGIN, END]}, …}
//
// Offsets count from the start of the data; tensors cover the data without gap or overlap.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/files.h"

namespace millrace {

inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;  // the format's own bound

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // "F32", "BF16", "I64", …
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes, from the start of the data
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // in the order of their data
  std::map<std::string, std::string> metadata;
  uint64_t data_offset = 0;  // of the data in the file
  uint64_t data_bytes = 0;

  // Null if there is none of this name.
  const SafetensorsEntry* Find(absl::string_view name) const;
};

// Bytes of one element of a dtype; 0 if it is not known.
uint64_t DtypeBytes(absl::string_view dtype);

// Lays the tensors out one after another in the given order: sets begin, end, data_offset and data_bytes, and returns
// what the file starts with, up to the data. The data starts at a multiple of 64 bytes.
std::string LayOutSafetensors(SafetensorsHeader* header);

// `start`: the file's first bytes, at least up to the data. Checks everything: bounds, known dtypes, names that occur
// once, shapes that have the sizes they claim, data without gap or overlap that ends where the file ends. DATA_LOSS says
// what is wrong; for a file that ends too early, the first tensor that is not all there.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view start, uint64_t file_bytes);

// A file mapped into memory. Thread-safe.
class SafetensorsFile {
 public:
  // Errors name the path.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const SafetensorsHeader& header() const { return header_; }
  // All the bytes of the data.
  absl::string_view data() const { return file_.bytes().substr(header_.data_offset); }
  absl::string_view bytes(const SafetensorsEntry& entry) const {
    return data().substr(entry.begin, entry.end - entry.begin);
  }

 private:
  SafetensorsFile(MappedFile file, SafetensorsHeader header) : file_(std::move(file)), header_(std::move(header)) {}
  const MappedFile file_;
  const SafetensorsHeader header_;
};

}  // namespace millrace
