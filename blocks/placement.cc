#include "blocks/placement.h"

#include <algorithm>

namespace millrace::blocks {
namespace {

struct Piece {
  uint32_t first_block = 0;
  uint32_t block_count = 0;
  int64_t size = 0;
};

}  // namespace

std::vector<uint32_t> PlaceBlocks(const BlockTable& table, const v1::OptimizerSpec& optimizer, uint32_t shards) {
  const bool whole_matrices = optimizer.type() == "muon" || optimizer.type() == "adafactor";
  std::vector<Piece> pieces;
  for (const TensorInfo& tensor : table.tensors()) {
    if (whole_matrices && tensor.role == v1::Tensor::MATRIX) {
      pieces.push_back({tensor.first_block, tensor.block_count, tensor.size});
      continue;
    }
    for (uint32_t i = 0; i < tensor.block_count; ++i) {
      pieces.push_back({tensor.first_block + i, 1, table.blocks()[tensor.first_block + i].size});
    }
  }
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.size > b.size; });
  std::vector<int64_t> held(shards, 0);
  std::vector<uint32_t> shard_of(table.blocks().size(), 0);
  for (const Piece& piece : pieces) {
    const auto least = std::min_element(held.begin(), held.end());
    *least += piece.size;
    for (uint32_t i = 0; i < piece.block_count; ++i) {
      shard_of[piece.first_block + i] = static_cast<uint32_t>(least - held.begin());
    }
  }
  return shard_of;
}

}  // namespace millrace::blocks
