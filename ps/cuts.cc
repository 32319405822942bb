#include "ps/cuts.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace millrace::ps {

Cuts::Cut::~Cut() {
  absl::MutexLock lock(&cuts_->mutex_);
  cuts_->End(this, absl::CancelledError("no longer read"));
  cuts_->open_.remove(this);
}

absl::Status Cuts::Cut::Take(uint32_t block, absl::FunctionRef<bool(v1::SnapshotReply* reply)> read,
                             v1::SnapshotReply* reply) {
  const bool unchanged = read(reply);
  absl::MutexLock lock(&cuts_->mutex_);
  if (!ended_.ok()) return ended_;
  if (const auto copy = copies_.find(block); copy != copies_.end()) {
    cuts_->bytes_ -= BytesOf(copy->second);
    if (!unchanged) *reply = std::move(copy->second);
    copies_.erase(copy);
  } else if (!unchanged) {
    return absl::FailedPreconditionError(absl::StrCat("version ", version_, " is not held any more"));
  }
  if (taken_.size() <= block) taken_.resize(block + 1, false);
  taken_[block] = true;
  moved_ = absl::Now();
  cuts_->changed_.SignalAll();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Cuts::Cut>> Cuts::Open(uint64_t version, std::vector<bool> left_out) {
  absl::MutexLock lock(&mutex_);
  if (!closed_.ok()) return closed_;
  if (open_.size() >= options_.most_readers) {
    return absl::ResourceExhaustedError(absl::StrCat(open_.size(), " snapshots are being read already"));
  }
  std::unique_ptr<Cut> cut(new Cut(this, version, std::move(left_out)));
  open_.push_back(cut.get());
  return cut;
}

bool Cuts::Needs(const Cut& cut, uint64_t version, uint32_t block) const {
  return cut.version_ == version && cut.ended_.ok() && !cut.LeavesOut(block) &&
         !(block < cut.taken_.size() && cut.taken_[block]) && !cut.copies_.contains(block);
}

bool Cuts::AnyNeeds(uint64_t version, uint32_t block) const {
  return std::any_of(open_.begin(), open_.end(), [&](const Cut* cut) { return Needs(*cut, version, block); });
}

bool Cuts::Secure(uint64_t version, uint32_t first, uint32_t count, size_t bytes, bool wait,
                  absl::FunctionRef<void(uint32_t block, v1::SnapshotReply* copy)> copy) {
  if (!AwaitRoom(version, first, count, bytes, wait)) return false;
  for (uint32_t block = first; block < first + count; ++block) {
    {
      absl::MutexLock lock(&mutex_);
      if (!AnyNeeds(version, block)) continue;
    }
    v1::SnapshotReply made;
    copy(block, &made);
    // Readers may have gone, or come to the block, meanwhile.
    absl::MutexLock lock(&mutex_);
    for (Cut* const cut : open_) {
      if (!Needs(*cut, version, block)) continue;
      bytes_ += BytesOf(made);
      cut->copies_[block] = made;
    }
  }
  return true;
}

bool Cuts::AwaitRoom(uint64_t version, uint32_t first, uint32_t count, size_t bytes, bool wait) {
  const absl::Time began = absl::Now();
  absl::MutexLock lock(&mutex_);
  for (;;) {
    if (!closed_.ok()) return false;
    size_t wanted = 0;
    for (const Cut* const cut : open_) {
      bool any = false;
      for (uint32_t block = first; block < first + count; ++block) any |= Needs(*cut, version, block);
      wanted += any ? bytes : 0;
    }
    if (wanted == 0 || bytes_ == 0 || bytes_ + wanted <= options_.limit_bytes) return true;
    if (!wait) return false;
    changed_.WaitWithTimeout(&mutex_, std::min(options_.patience, absl::Milliseconds(200)));
    for (Cut* const cut : open_) {
      if (!cut->ended_.ok() || absl::Now() - std::max(cut->moved_, began) < options_.patience) continue;
      End(cut, absl::DeadlineExceededError(absl::StrCat("version ", cut->version_, " was given up: a step waited ",
                                                        absl::FormatDuration(options_.patience),
                                                        " for its reader, who took nothing")));
    }
  }
}

void Cuts::Close(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  closed_ = why;
  for (Cut* const cut : open_) End(cut, why);
  changed_.SignalAll();
}

void Cuts::End(Cut* cut, const absl::Status& why) {
  if (cut->ended_.ok()) cut->ended_ = why;
  for (const auto& [block, copy] : cut->copies_) bytes_ -= BytesOf(copy);
  cut->copies_.clear();
  changed_.SignalAll();
}

}  // namespace millrace::ps
