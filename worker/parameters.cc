#include "worker/parameters.h"

#include <cstring>

#include "kernels/bfloat16.h"

namespace millrace::worker {

Parameters::Parameters(const std::vector<int64_t>* offsets, const blocks::BlockTable* blocks, client::ShardGroup* group,
                       uint32_t weight_bits, bool holds_frozen, float* weights)
    : offsets_(offsets),
      blocks_(blocks),
      group_(group),
      weight_bits_(weight_bits),
      weights_(weights),
      codings_(blocks->blocks().size()),
      holds_frozen_(holds_frozen) {}

void Parameters::Fetch(uint64_t version) {
  if (version == version_) return;
  version_ = version;
  using Which = client::ShardGroup::Which;
  const Which which = holds_frozen_ ? Which::kTrainable : Which::kAll;
  {
    absl::MutexLock lock(&mutex_);
    missing_.assign(blocks_->groups(), 0);
    for (const blocks::Block& block : blocks_->blocks()) {
      if (which == Which::kAll || blocks_->TensorOf(block).trainable) ++missing_[block.group];
    }
    ended_ = false;
    status_ = absl::OkStatus();
  }
  fetching_ = threads_.Start([this, version, which] {
    const absl::Status pulled = group_->Pull(
        version,
        [this](uint32_t block, absl::string_view bytes, const blocks::Coding& coding) {
          return Take(block, bytes, coding);
        },
        which);
    absl::MutexLock lock(&mutex_);
    status_ = pulled;
    ended_ = true;
    arrived_.SignalAll();
  });
}

// On a thread a shard.
absl::Status Parameters::Take(uint32_t index, absl::string_view bytes, const blocks::Coding& coding) {
  const blocks::Block& block = blocks_->blocks()[index];
  float* const weights = weights_ + (*offsets_)[block.tensor] + block.begin;
  if (weight_bits_ == 16) {
    kernels::WidenBf16(reinterpret_cast<const uint16_t*>(bytes.data()), block.size, weights);
  } else {
    std::memcpy(weights, bytes.data(), bytes.size());
  }
  codings_[index] = coding;
  absl::MutexLock lock(&mutex_);
  if (--missing_[block.group] == 0) arrived_.SignalAll();
  return absl::OkStatus();
}

absl::Status Parameters::Await(uint32_t group) {
  if (!fetching_.joinable()) return absl::OkStatus();
  absl::MutexLock lock(&mutex_);
  while (missing_[group] > 0 && !ended_) arrived_.Wait(&mutex_);
  return missing_[group] == 0 ? absl::OkStatus() : status_;
}

absl::Status Parameters::Settle() {
  if (!fetching_.joinable()) return absl::OkStatus();
  fetching_.Join();
  absl::MutexLock lock(&mutex_);
  if (status_.ok()) {
    holds_frozen_ = true;
  } else {
    version_ = kNone;
  }
  return status_;
}

}  // namespace millrace::worker
