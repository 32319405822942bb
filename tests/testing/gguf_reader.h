// Reads GGUF files for tests, by the format's own description (ggml's docs/gguf.md), not by what writes them here.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace millrace::testing {

struct GgufValue {
  uint32_t type = 0;  // 4 u32, 5 i32, 6 f32, 7 bool, 8 string; of the elements of an array
  bool is_array = false;
  std::vector<double> numbers;
  std::vector<std::string> texts;

  double number() const { return numbers.at(0); }
  const std::string& text() const { return texts.at(0); }
};

struct GgufTensor {
  std::vector<uint64_t> extents;  // the innermost first
  uint32_t type = 0;              // 0 F32, 1 F16, 8 Q8_0, 30 BF16
  uint64_t offset = 0;
  std::vector<float> values;
};

struct GgufFile {
  std::map<std::string, GgufValue> pairs;
  std::map<std::string, GgufTensor> tensors;
};

class GgufReader {
 public:
  explicit GgufReader(const std::string& bytes) : bytes_(bytes) {}

  // Fails the test where the file is not as it should be.
  GgufFile Read() {
    GgufFile file;
    EXPECT_EQ(bytes_.substr(0, 4), "GGUF");
    at_ = 4;
    EXPECT_EQ(Take<uint32_t>(), 3u);
    const auto tensors = Take<uint64_t>(), pairs = Take<uint64_t>();
    for (uint64_t i = 0; i < pairs && !failed_; ++i) {
      const std::string key = TakeText();
      GgufValue value;
      value.type = Take<uint32_t>();
      uint64_t count = 1;
      if (value.type == 9) {
        value.is_array = true;
        value.type = Take<uint32_t>();
        count = Take<uint64_t>();
      }
      for (uint64_t j = 0; j < count && !failed_; ++j) TakeValue(&value);
      EXPECT_TRUE(file.pairs.emplace(key, value).second) << key << " twice";
    }
    std::vector<std::string> order;
    for (uint64_t i = 0; i < tensors && !failed_; ++i) {
      const std::string name = TakeText();
      GgufTensor tensor;
      const auto dimensions = Take<uint32_t>();
      EXPECT_LE(dimensions, 4u);
      for (uint32_t j = 0; j < dimensions && j < 4; ++j) tensor.extents.push_back(Take<uint64_t>());
      tensor.type = Take<uint32_t>();
      tensor.offset = Take<uint64_t>();
      EXPECT_EQ(tensor.offset % 32, 0u) << name;
      EXPECT_TRUE(file.tensors.emplace(name, tensor).second) << name << " twice";
      order.push_back(name);
    }
    const size_t data = (at_ + 31) / 32 * 32;
    uint64_t expected = 0;
    for (const std::string& name : order) {
      GgufTensor& tensor = file.tensors[name];
      EXPECT_EQ(tensor.offset, expected) << name;
      at_ = data + tensor.offset;
      TakeTensor(&tensor);
      expected = (at_ - data + 31) / 32 * 32;
    }
    EXPECT_EQ(data + expected, bytes_.size());
    return file;
  }

 private:
  template <typename T>
  T Take() {
    T value = {};
    if (at_ + sizeof(T) > bytes_.size()) {
      if (!failed_) ADD_FAILURE() << "the file ends at " << at_;
      failed_ = true;
      return value;
    }
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }
  std::string TakeText() {
    const auto size = Take<uint64_t>();
    if (failed_ || size > bytes_.size() - at_) {
      failed_ = true;
      return "";
    }
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  void TakeValue(GgufValue* value) {
    switch (value->type) {
      case 4:
        return value->numbers.push_back(Take<uint32_t>());
      case 5:
        return value->numbers.push_back(Take<int32_t>());
      case 6:
        return value->numbers.push_back(static_cast<double>(Take<float>()));
      case 7:
        return value->numbers.push_back(Take<uint8_t>());
      case 8:
        return value->texts.push_back(TakeText());
      default:
        ADD_FAILURE() << "type " << value->type;
        failed_ = true;
    }
  }
  void TakeTensor(GgufTensor* tensor) {
    uint64_t count = 1;
    for (const uint64_t extent : tensor->extents) count *= extent;
    while (tensor->values.size() < count && !failed_) {
      if (tensor->type == 0) {
        tensor->values.push_back(Take<float>());
      } else if (tensor->type == 1) {
        tensor->values.push_back(_cvtsh_ss(Take<uint16_t>()));
      } else if (tensor->type == 30) {
        const uint32_t bits = uint32_t{Take<uint16_t>()} << 16;
        float value;
        std::memcpy(&value, &bits, sizeof(value));
        tensor->values.push_back(value);
      } else if (tensor->type == 8) {
        EXPECT_EQ(tensor->extents[0] % 32, 0u);
        const float scale = _cvtsh_ss(Take<uint16_t>());
        for (int i = 0; i < 32; ++i) tensor->values.push_back(scale * static_cast<float>(Take<int8_t>()));
      } else {
        ADD_FAILURE() << "type " << tensor->type;
        failed_ = true;
      }
    }
  }

  const std::string& bytes_;
  size_t at_ = 0;
  bool failed_ = false;
};

}  // namespace millrace::testing
