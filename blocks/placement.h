// Says which shard holds which block.
#pragma once

#include <cstdint>
#include <vector>

#include "blocks/block_table.h"
#include "proto/millrace/v1/job.pb.h"

namespace millrace::blocks {

// The shard of each block, by block index: a function of its arguments alone. Pieces are dealt out from the largest to
// the smallest (equals in table order), each to the shard that holds least so far (the first of equals), so that no
// shard holds more than the smallest by more than one piece. A piece is a block; for muon and adafactor, which need
// whole matrices, a tensor of role MATRIX is one piece.
// Requires shards >= 1.
std::vector<uint32_t> PlaceBlocks(const BlockTable& table, const v1::OptimizerSpec& optimizer, uint32_t shards);

}  // namespace millrace::blocks
