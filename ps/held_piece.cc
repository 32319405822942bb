#include "ps/held_piece.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/checksum.h"
#include "common/status.h"
#include "kernels/bfloat16.h"
#include "optim/sensitivity.h"

namespace millrace::ps {
namespace {

const char* Bytes(const float* values) { return reinterpret_cast<const char*>(values); }
size_t ByteCount(int64_t values) { return static_cast<size_t>(values) * sizeof(float); }

std::string Show(const blocks::Coding& coding) {
  return absl::StrCat(coding.bits, " bits with exponent ", coding.exponent);
}

}  // namespace

HeldPiece::HeldPiece(const blocks::BlockTable* table, uint32_t first_block, uint32_t block_count,
                     const optim::Optimizer* optimizer, uint32_t units, uint32_t weight_bits)
    : table_(table), first_block_(first_block), trainable_(optimizer != nullptr), weight_bits_(weight_bits) {
  const blocks::TensorInfo& tensor = table->TensorOf(table->blocks()[first_block]);
  multiplier_ = tensor.learning_rate_multiplier;
  about_.role = tensor.role;
  about_.decays = tensor.shape.size() >= 2;
  for (uint32_t i = 0; i < block_count; ++i) about_.size += table->blocks()[first_block + i].size;
  if (trainable_ && optimizer->needs_whole_matrices() && tensor.role == v1::Tensor::MATRIX) {
    about_.rows = tensor.shape[0];
    about_.columns = tensor.shape[1];
    about_.rows_are_inputs = tensor.rows_are_inputs;
  }
  sensitivity_begin_ = trainable_ ? optimizer->StateSize(about_) : 0;
  state_size_ = sensitivity_begin_ + (tensor.tracked() ? optim::kSensitivityState * about_.size : 0);
  const auto state_before = [this](int64_t element) {
    return static_cast<int64_t>(static_cast<__int128>(state_size_) * element / about_.size);
  };
  int64_t begin = 0;
  for (uint32_t i = 0; i < block_count; ++i) {
    Part part;
    part.begin = begin;
    part.size = table->blocks()[first_block + i].size;
    begin += part.size;
    part.state_begin = state_before(part.begin);
    part.state_size = state_before(begin) - part.state_begin;
    if (trainable_) part.sum = std::make_unique<GradientSum>(part.size, units);
    parts_.push_back(std::move(part));
  }
  absl::MutexLock lock(&mutex_);
  weights_.resize(static_cast<size_t>(about_.size));
  state_.resize(static_cast<size_t>(state_size_));
  codings_.resize(block_count);
}

absl::Status HeldPiece::Damaged(uint32_t part) const {
  return absl::DataLossError(
      absl::StrCat("block ", Name(part), " was damaged on its way: its CRC-32C is not the one that was sent with it"));
}

absl::Status HeldPiece::CheckLoad(uint32_t part, const v1::LoadRequest& request) const {
  const Part& where = parts_[part];
  if (request.weights().size() != ByteCount(where.size)) {
    return absl::InvalidArgumentError(absl::StrCat("block ", Name(part), " comes with ", request.weights().size(),
                                                   " bytes of weights; it has ", ByteCount(where.size)));
  }
  if (!request.state().empty() && request.state().size() != ByteCount(where.state_size)) {
    return absl::InvalidArgumentError(absl::StrCat("block ", Name(part), " comes with ", request.state().size(),
                                                   " bytes of optimizer state; it has ", ByteCount(where.state_size),
                                                   ", or none at the start"));
  }
  const absl::StatusOr<blocks::Coding> coding = blocks::CodingFromProto(request.coding());
  if (!coding.ok()) return Annotate(coding.status(), absl::StrCat("block ", Name(part)));
  if (Crc32c(request.state().data(), request.state().size(),
             Crc32c(request.weights().data(), request.weights().size())) != request.crc32c()) {
    return Damaged(part);
  }
  return absl::OkStatus();
}

void HeldPiece::Load(uint32_t part, const v1::LoadRequest& request) {
  const Part& where = parts_[part];
  absl::MutexLock lock(&mutex_);
  if (dropped_) return;
  std::memcpy(weights_.data() + where.begin, request.weights().data(), request.weights().size());
  float* const state = state_.data() + where.state_begin;
  if (request.state().empty()) {
    std::fill(state, state + where.state_size, 0.0f);
  } else {
    std::memcpy(state, request.state().data(), request.state().size());
  }
  codings_[part] = *blocks::CodingFromProto(request.coding());
}

void HeldPiece::Start(uint64_t version) {
  absl::MutexLock lock(&mutex_);
  started_ = true;
  version_ = version;
}

void HeldPiece::Drop() {
  absl::MutexLock lock(&mutex_);
  dropped_ = true;
  weights_ = {};
  state_ = {};
  for (Part& part : parts_) part.sum.reset();
}

bool HeldPiece::Read(uint32_t part, uint64_t version, char* weights, v1::Coding* coding) const {
  const Part& where = parts_[part];
  absl::ReaderMutexLock lock(&mutex_);
  if (!started_ || dropped_ || version_ != version) return false;
  const float* const held = weights_.data() + where.begin;
  if (weight_bits_ == 16) {
    // Strings and rings are aligned to more than two bytes.
    kernels::RoundToBf16(held, where.size, reinterpret_cast<uint16_t*>(weights));
  } else {
    std::memcpy(weights, held, ByteCount(where.size));
  }
  *coding = blocks::CodingToProto(codings_[part]);
  return true;
}

bool HeldPiece::Read(uint32_t part, uint64_t version, v1::SnapshotReply* reply) const {
  const Part& where = parts_[part];
  absl::ReaderMutexLock lock(&mutex_);
  if (!started_ || dropped_ || version_ != version) return false;
  reply->mutable_weights()->assign(Bytes(weights_.data() + where.begin), ByteCount(where.size));
  reply->mutable_state()->assign(Bytes(state_.data() + where.state_begin), ByteCount(where.state_size));
  *reply->mutable_coding() = blocks::CodingToProto(codings_[part]);
  return true;
}

absl::Status HeldPiece::CheckSum(uint32_t part, const v1::PushRequest& request) const {
  const std::string& values = request.values();
  return Crc32c(values.data(), values.size()) == request.crc32c() ? absl::OkStatus() : Damaged(part);
}

absl::StatusOr<bool> HeldPiece::Add(uint32_t part, const v1::PushRequest& request, absl::string_view values) {
  const Part& where = parts_[part];
  const absl::StatusOr<blocks::Coding> coding = blocks::CodingFromProto(request.coding());
  if (!coding.ok()) return Annotate(coding.status(), absl::StrCat("block ", Name(part)));
  if (request.saturated() > static_cast<uint64_t>(where.size)) {
    return absl::InvalidArgumentError(absl::StrCat("block ", Name(part), " comes with ", request.saturated(),
                                                   " saturated values; it has ", where.size, " values"));
  }
  absl::ReaderMutexLock lock(&mutex_);
  if (!started_ || dropped_ || version_ != request.version()) {
    return absl::FailedPreconditionError(absl::StrCat("block ", Name(part), " is at version ", version_,
                                                      "; gradients of version ", request.version(),
                                                      " have no place here any more"));
  }
  if (*coding != codings_[part]) {
    return absl::InvalidArgumentError(absl::StrCat("block ", Name(part), " comes coded as ", Show(*coding),
                                                   "; at version ", version_, " it takes ", Show(codings_[part])));
  }
  absl::StatusOr<bool> added = where.sum->Add(request.unit(), values, *coding, request.saturated());
  if (!added.ok()) return Annotate(added.status(), absl::StrCat("block ", Name(part)));
  return added;
}

double HeldPiece::SquaredNorm(uint32_t part) const {
  absl::ReaderMutexLock lock(&mutex_);
  return !trainable_ || dropped_ ? 0 : parts_[part].sum->SquaredNorm(codings_[part]);
}

std::vector<double> HeldPiece::Scores(uint32_t part, bool tracked) const {
  const Part& where = parts_[part];
  const blocks::ScoreRange range = table_->ScoresOf(BlockOf(part));
  absl::ReaderMutexLock lock(&mutex_);
  std::vector<double> sums(static_cast<size_t>(range.count));
  if (sums.empty() || dropped_) return {};
  const float* const held = state_.data() + sensitivity_begin_ + where.begin;
  std::vector<float> means(held, held + where.size);
  std::vector<float> deviations(held + about_.size, held + about_.size + where.size);
  if (tracked) {
    std::vector<float> gradient(static_cast<size_t>(where.size));
    where.sum->Decode(codings_[part], gradient.data());
    optim::TrackSensitivity(tensor().sensitivity, weights_.data() + where.begin, gradient.data(), where.size,
                            means.data(), deviations.data());
  }
  const int64_t first = BlockOf(part).begin;
  for (int64_t i = 0; i < where.size; ++i) {
    sums[static_cast<size_t>(tensor().ScoreOf(first + i) - range.first)] +=
        optim::SensitivityScore(means[static_cast<size_t>(i)], deviations[static_cast<size_t>(i)]);
  }
  return sums;
}

uint64_t HeldPiece::saturated() const {
  absl::ReaderMutexLock lock(&mutex_);
  uint64_t saturated = 0;
  for (const Part& part : parts_) saturated += part.sum == nullptr ? 0 : part.sum->saturated();
  return saturated;
}

uint32_t HeldPiece::missing_units(uint32_t part) const {
  absl::ReaderMutexLock lock(&mutex_);
  return parts_[part].sum == nullptr ? 0 : parts_[part].sum->missing();
}

std::vector<uint32_t> HeldPiece::MissingUnits(uint32_t part, size_t most) const {
  absl::ReaderMutexLock lock(&mutex_);
  return parts_[part].sum == nullptr ? std::vector<uint32_t>() : parts_[part].sum->Missing(most);
}

void HeldPiece::Step(const kernels::Compute& compute, const StepRule& rule, uint64_t version,
                     std::vector<float>* scratch) {
  absl::MutexLock lock(&mutex_);
  if (dropped_) return;
  if (trainable_) {
    scratch->resize(static_cast<size_t>(about_.size));
    float* const gradient = scratch->data();
    compute.ParallelFor(block_count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Part& part = parts_[static_cast<size_t>(i)];
        blocks::Coding& coding = codings_[static_cast<size_t>(i)];
        const uint64_t largest = part.sum->Decode(coding, gradient + part.begin);
        if (rule.tracked && tensor().tracked()) {
          float* const means = state_.data() + sensitivity_begin_ + part.begin;
          optim::TrackSensitivity(tensor().sensitivity, weights_.data() + part.begin, gradient + part.begin, part.size,
                                  means, means + about_.size);
        }
        for (int64_t j = part.begin; j < part.begin + part.size; ++j) gradient[j] *= rule.clip_factor;
        coding = blocks::NextCoding(coding, largest, rule.gradient_bits);
        part.sum->Clear();
      }
    });
    rule.optimizer->Update(compute, about_, rule.step, rule.factor * multiplier_, gradient, weights_.data(),
                           state_.data());
    ZeroElements(rule);
  }
  version_ = version + 1;
}

void HeldPiece::ZeroElements(const StepRule& rule) {
  if (rule.zeroed == nullptr) return;
  const auto zeroed = rule.zeroed->find(BlockOf(0).tensor);
  if (zeroed == rule.zeroed->end()) return;
  const int64_t first = BlockOf(0).begin;
  for (const int64_t element : zeroed->second) {
    if (element >= first && element < first + about_.size) weights_[static_cast<size_t>(element - first)] = 0.0f;
  }
}

}  // namespace millrace::ps
