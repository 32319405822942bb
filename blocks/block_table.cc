#include "blocks/block_table.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace millrace::blocks {
namespace {

constexpr int kMaxDimensions = 4;
constexpr size_t kMaxNameBytes = 256;
constexpr double kMaxMultiplier = 1e6;

}  // namespace

int64_t TensorInfo::scores() const {
  switch (sensitivity.by()) {
    case v1::Sensitivity::ELEMENTS:
      return size;
    case v1::Sensitivity::ROWS:
      return shape[0];
    case v1::Sensitivity::COLUMNS:
      return size / shape[0];
    default:
      return 0;
  }
}

int64_t TensorInfo::ScoreOf(int64_t element) const {
  const int64_t columns = size / shape[0];
  switch (sensitivity.by()) {
    case v1::Sensitivity::ROWS:
      return element / columns;
    case v1::Sensitivity::COLUMNS:
      return element % columns;
    default:
      return element;
  }
}

absl::StatusOr<BlockTable> BlockTable::Create(const v1::TensorTable& table) {
  if (table.tensors_size() == 0) return absl::InvalidArgumentError("the tensor table is empty");
  if (table.tensors_size() > kMaxTensors) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tensor table has ", table.tensors_size(), " tensors; at most ", kMaxTensors));
  }
  BlockTable made;
  std::set<std::string> names;
  for (const v1::Tensor& tensor : table.tensors()) {
    const auto wrong = [&tensor](absl::string_view what) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", absl::Utf8SafeCEscape(tensor.name().substr(0, kMaxNameBytes)), "' ", what));
    };
    if (tensor.name().empty() || tensor.name().size() > kMaxNameBytes) return wrong("has no usable name");
    if (!names.insert(tensor.name()).second) return wrong("occurs twice");
    if (tensor.shape_size() == 0 || tensor.shape_size() > kMaxDimensions)
      return wrong("has too few or many dimensions");
    if (tensor.role() != v1::Tensor::MATRIX && tensor.role() != v1::Tensor::EMBEDDING &&
        tensor.role() != v1::Tensor::VECTOR) {
      return wrong("has no role");
    }
    if (tensor.role() == v1::Tensor::MATRIX && tensor.shape_size() != 2)
      return wrong("is a matrix without two dimensions");
    const uint32_t group = tensor.group();
    if (group >= kMaxGroups || group + 1 < made.groups_.size()) return wrong("is out of its group's order");
    const double multiplier = tensor.learning_rate_multiplier();
    if (!(multiplier >= 0 && multiplier <= kMaxMultiplier)) return wrong("has an impossible learning-rate multiplier");
    TensorInfo info;
    info.name = tensor.name();
    info.trainable = tensor.trainable();
    info.role = tensor.role();
    info.rows_are_inputs = tensor.rows_are_inputs();
    info.group = group;
    if (multiplier != 0) info.learning_rate_multiplier = multiplier;
    info.sensitivity = tensor.sensitivity();
    const auto share = [](double number) { return number >= 0 && number < 1; };
    if (tensor.has_sensitivity()) {
      if (!tensor.trainable()) return wrong("is not trained, and has no sensitivity");
      if (!v1::Sensitivity::By_IsValid(tensor.sensitivity().by()) || !info.tracked() ||
          !share(tensor.sensitivity().decay()) || !share(tensor.sensitivity().uncertainty_decay())) {
        return wrong("has a sensitivity that cannot be tracked");
      }
    }
    info.size = 1;
    for (const int64_t size : tensor.shape()) {
      if (size <= 0 || size > kMaxParameters || info.size > kMaxParameters / size)
        return wrong("has an impossible size");
      info.size *= size;
      info.shape.push_back(size);
    }
    made.parameters_ += info.size;
    if (made.parameters_ > kMaxParameters) return wrong("makes the model too large");
    made.groups_.resize(group + 1);
    info.first_block = static_cast<uint32_t>(made.blocks_.size());
    for (int64_t begin = 0; begin < info.size; begin += kMaxBlockElements) {
      Block block;
      block.index = static_cast<uint32_t>(made.blocks_.size());
      block.tensor = static_cast<uint32_t>(made.tensors_.size());
      block.begin = begin;
      block.size = std::min(kMaxBlockElements, info.size - begin);
      block.group = group;
      made.groups_[group].push_back(block.index);
      made.blocks_.push_back(block);
    }
    info.block_count = static_cast<uint32_t>(made.blocks_.size()) - info.first_block;
    made.tensors_.push_back(std::move(info));
  }
  return made;
}

ScoreRange BlockTable::ScoresOf(const Block& block) const {
  const TensorInfo& tensor = TensorOf(block);
  if (!tensor.tracked()) return {};
  // Of all columns, however few elements the block has.
  if (tensor.sensitivity.by() == v1::Sensitivity::COLUMNS) return {0, tensor.scores()};
  const int64_t first = tensor.ScoreOf(block.begin);
  return {first, tensor.ScoreOf(block.begin + block.size - 1) + 1 - first};
}

std::string BlockTable::Name(const Block& block) const {
  return absl::StrCat(tensors_[block.tensor].name, "[", block.begin, ", ", block.begin + block.size, ")");
}

}  // namespace millrace::blocks
