#include "ps/block_store.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "blocks/placement.h"
#include "common/machine.h"
#include "common/status.h"
#include "optim/schedule.h"
#include "optim/sensitivity.h"

namespace millrace::ps {
namespace {

constexpr uint32_t kMaxShards = 1024;
// Bits of memory for which units are in, over all blocks.
constexpr uint64_t kMaxUnitBits = uint64_t{1} << 29;
// More steps than anybody takes; version + 1 cannot overflow.
constexpr uint64_t kMaxVersion = uint64_t{1} << 40;
constexpr size_t kSpareCopyBytes = 8 << 20;
// How often a waiting call looks whether it is still wanted.
constexpr absl::Duration kLook = absl::Milliseconds(50);
constexpr size_t kMissingShown = 8;

absl::Status CheckRequest(const v1::ConfigureRequest& request) {
  if (request.shard_count() == 0 || request.shard_count() > kMaxShards) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.shard_count(), " shards; 1 to ", kMaxShards, " can share a model"));
  }
  if (request.shard_index() >= request.shard_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("shard ", request.shard_index(), " of ", request.shard_count(), "; they are numbered from 0"));
  }
  if (request.units_per_step() == 0 || request.units_per_step() > kMaxUnits) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.units_per_step(), " units a step; 1 to ", kMaxUnits, " can be added up exactly"));
  }
  if (const uint32_t bits = blocks::WeightBits(request.optimizer()); bits != 16 && bits != 32) {
    return absl::InvalidArgumentError(absl::StrCat("the optimizer's weight_bits are ", bits, "; 16 or 32 are wanted"));
  }
  return absl::OkStatus();
}

// Whether they ask for the same of the same version.
bool SameCommit(const v1::CommitRequest& a, const v1::CommitRequest& b) {
  const auto same = [](const v1::ZeroedElements& x, const v1::ZeroedElements& y) {
    return x.tensor() == y.tensor() &&
           std::equal(x.elements().begin(), x.elements().end(), y.elements().begin(), y.elements().end());
  };
  return a.clip_factor() == b.clip_factor() && a.tracked() == b.tracked() &&
         std::equal(a.zeroed().begin(), a.zeroed().end(), b.zeroed().begin(), b.zeroed().end(), same);
}

// Before anything is allocated: the kernel would promise memory that it has not.
absl::Status CheckMemory(uint64_t bytes) {
  const uint64_t there = MemoryLimit();
  if (bytes <= there) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("this shard's part of the model takes ", bytes >> 20,
                                                   " MiB and its machine has ", there >> 20,
                                                   " MiB of memory; use more shards"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> BlockStore::Create(const v1::ConfigureRequest& request,
                                                               const kernels::Compute* compute) {
  MILLRACE_RETURN_IF_ERROR(CheckRequest(request));
  MILLRACE_ASSIGN_OR_RETURN(blocks::BlockTable table, blocks::BlockTable::Create(request.table()));
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<optim::Optimizer> optimizer, optim::CreateOptimizer(request.optimizer()));
  if (uint64_t{table.blocks().size()} * request.units_per_step() > kMaxUnitBits) {
    return absl::InvalidArgumentError(absl::StrCat(request.units_per_step(), " units a step of a model of ",
                                                   table.blocks().size(),
                                                   " blocks are too many to keep count of; make units larger"));
  }
  std::vector<uint32_t> shard_of = blocks::PlaceBlocks(table, request.optimizer(), request.shard_count());
  uint64_t bytes = 0;
  for (const blocks::Block& block : table.blocks()) {
    if (shard_of[block.index] != request.shard_index()) continue;
    optim::Piece piece;
    piece.size = block.size;
    const int64_t tracked = table.TensorOf(block).tracked() ? optim::kSensitivityState * block.size : 0;
    const int64_t state = optimizer->StateSize(piece) + tracked;
    bytes += static_cast<uint64_t>(table.TensorOf(block).trainable ? 12 * block.size + 4 * state : 4 * block.size);
  }
  MILLRACE_RETURN_IF_ERROR(CheckMemory(bytes));
  try {
    return std::unique_ptr<BlockStore>(
        new BlockStore(std::move(table), request, std::move(optimizer), compute, std::move(shard_of)));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("this shard's part of the model takes ", bytes >> 20, " MiB, more than can be allocated"));
  }
}

BlockStore::BlockStore(blocks::BlockTable table, const v1::ConfigureRequest& request,
                       std::unique_ptr<optim::Optimizer> optimizer, const kernels::Compute* compute,
                       std::vector<uint32_t> shard_of)
    : table_(std::move(table)),
      spec_(request.optimizer()),
      max_steps_(request.max_steps()),
      shard_index_(request.shard_index()),
      shard_count_(request.shard_count()),
      units_per_step_(request.units_per_step()),
      optimizer_(std::move(optimizer)),
      compute_(compute),
      shard_of_(std::move(shard_of)),
      cuts_([this] {
        Cuts::Options options;
        for (const blocks::Block& block : table_.blocks()) {
          if (shard_of_[block.index] == shard_index_) options.limit_bytes += 2 * static_cast<size_t>(block.size);
        }
        options.limit_bytes += kSpareCopyBytes;
        return options;
      }()) {
  const uint32_t weight_bits = blocks::WeightBits(spec_);
  places_.resize(table_.blocks().size());
  for (const blocks::TensorInfo& tensor : table_.tensors()) {
    const optim::Optimizer* const trains = tensor.trainable ? optimizer_.get() : nullptr;
    const bool whole = trains != nullptr && trains->needs_whole_matrices() && tensor.role == v1::Tensor::MATRIX;
    const uint32_t step = whole ? tensor.block_count : 1;
    for (uint32_t first = tensor.first_block; first < tensor.first_block + tensor.block_count; first += step) {
      if (shard_of_[first] != shard_index_) continue;
      pieces_.push_back(std::make_unique<HeldPiece>(&table_, first, step, trains, units_per_step_, weight_bits));
      for (uint32_t part = 0; part < step; ++part) {
        places_[first + part] = {pieces_.back().get(), part};
        held_.push_back(first + part);
        parameters_ += static_cast<uint64_t>(table_.blocks()[first + part].size);
      }
    }
  }
  absl::MutexLock lock(&mutex_);
  is_loaded_.resize(table_.blocks().size(), false);
  ready_ = held_.empty();
}

uint64_t BlockStore::version() const {
  absl::ReaderMutexLock lock(&mutex_);
  return version_;
}

bool BlockStore::ready() const {
  absl::ReaderMutexLock lock(&mutex_);
  return ready_;
}

uint64_t BlockStore::loaded() const {
  absl::ReaderMutexLock lock(&mutex_);
  return loaded_;
}

// ---- checks ----

absl::Status BlockStore::CheckHeld(uint32_t block) const {
  if (block >= places_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("there is no block ", block, "; the model has ", places_.size(), ", numbered from 0"));
  }
  if (places_[block].piece == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("block ", table_.Name(table_.blocks()[block]), " is held by shard ",
                                                   shard_of_[block], " of ", shard_count_, "; this is shard ",
                                                   shard_index_));
  }
  return absl::OkStatus();
}

absl::Status BlockStore::CheckHeld(absl::Span<const uint32_t> blocks) const {
  for (const uint32_t block : blocks) MILLRACE_RETURN_IF_ERROR(CheckHeld(block));
  return absl::OkStatus();
}

absl::Status BlockStore::CheckAt(uint64_t version) const {
  absl::ReaderMutexLock lock(&mutex_);
  return CheckAtLocked(version);
}

absl::Status BlockStore::CheckAtLocked(uint64_t version) const {
  if (!closed_.ok()) return closed_;
  if (!ready_) {
    return absl::FailedPreconditionError(absl::StrCat(loaded_, " of ", held_.size(), " blocks are loaded; load all"));
  }
  if (version != version_) {
    return absl::FailedPreconditionError(absl::StrCat("version ", version,
                                                      version < version_ ? " has passed" : " lies ahead",
                                                      ": the shard is at version ", version_));
  }
  return absl::OkStatus();
}

absl::Status BlockStore::CheckComplete(uint64_t version) const {
  uint64_t missing = 0;
  std::string example;
  for (const uint32_t block : held_) {
    const Place& place = places_[block];
    missing += place.piece->missing_units(place.part);
    if (missing == 0 || !example.empty()) continue;
    const std::vector<uint32_t> units = place.piece->MissingUnits(place.part, kMissingShown + 1);
    const auto shown = absl::MakeSpan(units).subspan(0, std::min(units.size(), kMissingShown));
    example = absl::StrCat("block ", table_.Name(table_.blocks()[block]), " lacks unit ", absl::StrJoin(shown, ", "),
                           units.size() > kMissingShown ? ", …" : "", " of ", units_per_step_);
  }
  if (missing == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("step ", version + 1, " is not complete: ", missing,
                                                    " contributions to blocks of this shard are missing; ", example));
}

void BlockStore::FollowIfEmpty(uint64_t version) {
  absl::MutexLock lock(&mutex_);
  if (held_.empty() && version > version_ && version <= kMaxVersion) version_ = version;
}

// ---- loading and pulling ----

absl::Status BlockStore::Load(const v1::LoadRequest& request) {
  const uint32_t block = request.block();
  MILLRACE_RETURN_IF_ERROR(CheckHeld(block));
  if (request.version() > kMaxVersion) {
    return absl::InvalidArgumentError(absl::StrCat("version ", request.version(), " is more steps than can be taken"));
  }
  const Place place = places_[block];
  MILLRACE_RETURN_IF_ERROR(place.piece->CheckLoad(place.part, request));
  absl::MutexLock lock(&mutex_);
  if (!closed_.ok()) return closed_;
  if (loading_.has_value() && *loading_ != request.version()) {
    return absl::FailedPreconditionError(absl::StrCat("block ", table_.Name(table_.blocks()[block]),
                                                      " comes at version ", request.version(),
                                                      "; in this epoch blocks are loaded at version ", *loading_));
  }
  if (ready_) {
    const bool pushed =
        table_.TensorOf(table_.blocks()[block]).trainable && place.piece->missing_units(place.part) < units_per_step_;
    if (request.again() && version_ == request.version() && !pushed) place.piece->Load(place.part, request);
    return absl::OkStatus();
  }
  place.piece->Load(place.part, request);
  loading_ = request.version();
  if (!is_loaded_[block]) {
    is_loaded_[block] = true;
    ++loaded_;
  }
  if (loaded_ < held_.size()) return absl::OkStatus();
  for (const auto& piece : pieces_) piece->Start(request.version());
  version_ = request.version();
  ready_ = true;
  changed_.SignalAll();
  return absl::OkStatus();
}

absl::Status BlockStore::AwaitVersion(uint64_t version, absl::FunctionRef<bool()> cancelled) {
  FollowIfEmpty(version);
  absl::MutexLock lock(&mutex_);
  while (closed_.ok() && (!ready_ || version > version_)) {
    changed_.WaitWithTimeout(&mutex_, kLook);
    if (cancelled()) return absl::CancelledError("the caller gave up");
  }
  return CheckAtLocked(version);
}

absl::Status BlockStore::Pull(uint32_t block, uint64_t version, char* weights, v1::Coding* coding) const {
  if (places_[block].piece->Read(places_[block].part, version, weights, coding)) return absl::OkStatus();
  MILLRACE_RETURN_IF_ERROR(CheckAt(version));
  // A commit has begun to change blocks.
  return absl::FailedPreconditionError(absl::StrCat("version ", version, " has passed while it was pulled"));
}

// ---- gradients and steps ----

absl::StatusOr<BlockStore::Place> BlockStore::PlaceOf(const v1::PushRequest& request) const {
  const uint32_t block = request.block();
  MILLRACE_RETURN_IF_ERROR(CheckHeld(block));
  const Place place = places_[block];
  if (!place.piece->trainable()) {
    return absl::InvalidArgumentError(
        absl::StrCat("block ", table_.Name(table_.blocks()[block]), " is not trained: it takes no gradients"));
  }
  if (request.unit() >= units_per_step_) {
    return absl::InvalidArgumentError(
        absl::StrCat("there is no unit ", request.unit(), "; a step has ", units_per_step_, ", numbered from 0"));
  }
  MILLRACE_RETURN_IF_ERROR(CheckAt(request.version()));
  return place;
}

absl::StatusOr<bool> BlockStore::Push(const v1::PushRequest& request) {
  MILLRACE_ASSIGN_OR_RETURN(const Place place, PlaceOf(request));
  MILLRACE_RETURN_IF_ERROR(place.piece->CheckSum(place.part, request));
  return place.piece->Add(place.part, request, request.values());
}

absl::StatusOr<bool> BlockStore::Push(const v1::PushRequest& request, absl::string_view values) {
  MILLRACE_ASSIGN_OR_RETURN(const Place place, PlaceOf(request));
  return place.piece->Add(place.part, request, values);
}

absl::Status BlockStore::Norms(const v1::NormsRequest& request, v1::NormsReply* reply) {
  const uint64_t version = request.version();
  FollowIfEmpty(version);
  absl::MutexLock computing(&commit_mutex_);
  MILLRACE_RETURN_IF_ERROR(CheckAt(version));
  MILLRACE_RETURN_IF_ERROR(CheckComplete(version));
  std::vector<double> norms(held_.size());
  std::vector<std::vector<double>> scores(held_.size());
  compute_->ParallelFor(static_cast<int64_t>(held_.size()), 1, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end) && !closing_.load(); ++i) {
      const Place& place = places_[held_[i]];
      norms[i] = place.piece->SquaredNorm(place.part);
      if (request.scores()) scores[i] = place.piece->Scores(place.part, request.tracked());
    }
  });
  MILLRACE_RETURN_IF_ERROR(CheckAt(version));  // not closed meanwhile
  reply->mutable_blocks()->Add(held_.begin(), held_.end());
  reply->mutable_squared_norms()->Add(norms.begin(), norms.end());
  for (size_t i = 0; i < held_.size(); ++i) {
    if (scores[i].empty()) continue;
    v1::BlockScores& block = *reply->add_scores();
    block.set_block(held_[i]);
    block.mutable_sums()->Add(scores[i].begin(), scores[i].end());
  }
  uint64_t saturated = 0;
  for (const auto& piece : pieces_) saturated += piece->saturated();
  reply->set_saturated(saturated);
  return absl::OkStatus();
}

absl::StatusOr<std::map<uint32_t, std::vector<int64_t>>> BlockStore::ZeroedBy(const v1::CommitRequest& request) const {
  std::map<uint32_t, std::vector<int64_t>> zeroed;
  for (const v1::ZeroedElements& elements : request.zeroed()) {
    if (elements.tensor() >= table_.tensors().size()) {
      return absl::InvalidArgumentError(absl::StrCat("elements of tensor ", elements.tensor(),
                                                     " cannot become zero; the model has ", table_.tensors().size()));
    }
    const blocks::TensorInfo& tensor = table_.tensors()[elements.tensor()];
    if (!tensor.trainable) {
      return absl::InvalidArgumentError(
          absl::StrCat("elements of ", tensor.name, " cannot become zero: it is not trained"));
    }
    for (const uint64_t element : elements.elements()) {
      if (element >= static_cast<uint64_t>(tensor.size)) {
        return absl::InvalidArgumentError(absl::StrCat("element ", element, " of ", tensor.name,
                                                       " cannot become zero; it has ", tensor.size, " elements"));
      }
      zeroed[elements.tensor()].push_back(static_cast<int64_t>(element));
    }
  }
  return zeroed;
}

absl::StatusOr<v1::CommitReply> BlockStore::Commit(const v1::CommitRequest& request, bool* applied) {
  *applied = false;
  const uint64_t version = request.version();
  if (!std::isfinite(request.clip_factor()) || request.clip_factor() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a clipping factor of ", request.clip_factor(), "; a finite one that is not negative is wanted"));
  }
  if (version > kMaxVersion) {
    return absl::InvalidArgumentError(absl::StrCat("version ", version, " is more steps than can be taken"));
  }
  MILLRACE_ASSIGN_OR_RETURN(const auto zeroed, ZeroedBy(request));
  absl::MutexLock computing(&commit_mutex_);
  {
    absl::ReaderMutexLock lock(&mutex_);
    if (closed_.ok() && version_ == version + 1 && last_commit_.has_value() && last_commit_->version() == version_) {
      if (SameCommit(request, last_request_)) return *last_commit_;
      return absl::FailedPreconditionError(
          absl::StrCat("version ", version, " was committed with a clipping factor of ", last_request_.clip_factor(),
                       " and ", last_request_.zeroed_size(), " tensors with zeros, not ", request.clip_factor(),
                       " and ", request.zeroed_size(), " with these"));
    }
  }
  FollowIfEmpty(version);
  MILLRACE_RETURN_IF_ERROR(CheckAt(version));
  MILLRACE_RETURN_IF_ERROR(CheckComplete(version));
  StepRule rule;
  rule.optimizer = optimizer_.get();
  rule.step = version + 1;
  rule.factor = optim::ScheduleFactor(spec_, rule.step, max_steps_);
  rule.clip_factor = request.clip_factor();
  rule.gradient_bits = spec_.gradient_bits();
  rule.tracked = request.tracked();
  rule.zeroed = &zeroed;
  // As many pieces at a time as there is room for copies that snapshots need: all, mostly.
  for (size_t begin = 0; begin < pieces_.size();) {
    size_t end = begin;
    while (end < pieces_.size() && Secure(end, version, /*wait=*/end == begin)) ++end;
    Step(begin, end, rule, version);
    if (closing_.load()) break;
    begin = end;
  }
  absl::MutexLock lock(&mutex_);
  if (!closed_.ok()) return closed_;
  v1::CommitReply reply;
  reply.set_version(version + 1);
  reply.set_learning_rate(spec_.lr() * rule.factor);
  version_ = version + 1;
  last_request_ = request;
  last_commit_ = reply;
  changed_.SignalAll();
  *applied = true;
  return reply;
}

bool BlockStore::Secure(size_t index, uint64_t version, bool wait) {
  const HeldPiece& piece = *pieces_[index];
  return cuts_.Secure(version, piece.first_block(), piece.block_count(), piece.copy_bytes(), wait,
                      [&](uint32_t block, v1::SnapshotReply* copy) {
                        copy->set_block(block);
                        piece.Read(block - piece.first_block(), version, copy);
                      });
}

// Whole matrices take all threads one after another; the other pieces a thread each.
void BlockStore::Step(size_t begin, size_t end, const StepRule& rule, uint64_t version) {
  std::vector<HeldPiece*> single;
  std::vector<float> scratch;
  for (size_t i = begin; i < end && !closing_.load(); ++i) {
    if (pieces_[i]->whole_matrix()) {
      pieces_[i]->Step(*compute_, rule, version, &scratch);
    } else {
      single.push_back(pieces_[i].get());
    }
  }
  scratch = {};
  compute_->ParallelFor(static_cast<int64_t>(single.size()), 1, [&](int64_t first, int64_t last) {
    const kernels::Compute alone(compute_->isa(), 1);
    std::vector<float> own;
    for (int64_t i = first; i < last && !closing_.load(); ++i) {
      single[static_cast<size_t>(i)]->Step(alone, rule, version, &own);
    }
  });
}

// ---- snapshots ----

absl::StatusOr<std::unique_ptr<Cuts::Cut>> BlockStore::Hold(uint64_t version, absl::Span<const uint32_t> left_out) {
  std::vector<bool> blocks(places_.size(), false);
  for (const uint32_t index : left_out) {
    if (index >= table_.tensors().size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", index, " cannot be left out; the model has ", table_.tensors().size()));
    }
    const blocks::TensorInfo& tensor = table_.tensors()[index];
    std::fill_n(blocks.begin() + tensor.first_block, tensor.block_count, true);
  }
  FollowIfEmpty(version);
  absl::MutexLock computing(&commit_mutex_);  // no step is half applied
  MILLRACE_RETURN_IF_ERROR(CheckAt(version));
  return cuts_.Open(version, std::move(blocks));
}

absl::Status BlockStore::Read(Cuts::Cut* cut, uint32_t block, v1::SnapshotReply* reply) const {
  const Place& place = places_[block];
  reply->set_block(block);
  return cut->Take(
      block, [&](v1::SnapshotReply* now) { return place.piece->Read(place.part, cut->version(), now); }, reply);
}

void BlockStore::Close(const absl::Status& why) {
  closing_ = true;
  {
    absl::MutexLock lock(&mutex_);
    if (!closed_.ok()) return;
    closed_ = why;
    changed_.SignalAll();
  }
  cuts_.Close(why);
  absl::MutexLock computing(&commit_mutex_);  // whoever computes has noticed
  for (const auto& piece : pieces_) piece->Drop();
}

}  // namespace millrace::ps
