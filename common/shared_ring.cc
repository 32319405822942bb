#include "common/shared_ring.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <ctime>
#include <new>

namespace millrace {
namespace {

constexpr size_t kLine = 64;
constexpr int kLooks = 200;
// A sleeper looks around after that time, and then after ever longer ones: it may be waited for in vain for long.
constexpr int64_t kFirstSleepNanoseconds = 20'000'000;
constexpr int64_t kLongestSleepNanoseconds = 640'000'000;
// A sleeper is woken for as much as this: frames may be small, and waking costs more than moving them.
constexpr uint64_t kWorthWaking = 256 << 10;
// In place of a size: the rest of the room is left empty.
constexpr uint32_t kSkip = 0xFFFFFFFF;

size_t RoundUp(size_t size) { return (size + kLine - 1) / kLine * kLine; }

}  // namespace

// Bytes written and read since the beginning, each changed by one end alone.
struct SharedRing::Positions {
  alignas(kLine) std::atomic<uint64_t> written;
  std::atomic<uint32_t> writes;  // counts changes of `written`: what a reader sleeps on
  std::atomic<uint32_t> reader_sleeps;
  alignas(kLine) std::atomic<uint64_t> read;
  std::atomic<uint32_t> reads;
  std::atomic<uint32_t> writer_sleeps;
};

struct SharedRing::Header {
  uint32_t values_size;
  uint32_t about_size;
  uint64_t unused;
  char about[kAboutBytes];
};

SharedRing::SharedRing(char* memory)
    : positions_(reinterpret_cast<Positions*>(memory)), room_(memory + kBytes - kRoomBytes) {
  static_assert(sizeof(Positions) <= kBytes - kRoomBytes && sizeof(Header) == kHeaderBytes);
  static_assert(kHeaderBytes % kLine == 0 && kMostValues % kLine == 0);
  static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);
}

absl::Status SharedRing::Await(std::atomic<uint32_t>* changes, std::atomic<uint32_t>* sleeps,
                               absl::FunctionRef<bool()> look, KeepWaiting keep_waiting) {
  for (int i = 0; i < kLooks; ++i) {
    if (look()) return absl::OkStatus();
    _mm_pause();
  }
  int64_t nanoseconds = kFirstSleepNanoseconds;
  for (bool goes_on = true; goes_on;) {
    // Announced before the last look: either this sees the change, or the other end sees the sleeper.
    const uint32_t seen = changes->load();
    sleeps->store(1);
    goes_on = keep_waiting();
    const bool there = look();
    if (goes_on && !there) {
      const timespec most = {0, nanoseconds};
      syscall(SYS_futex, changes, FUTEX_WAIT, seen, &most, nullptr, 0);
      nanoseconds = std::min(2 * nanoseconds, kLongestSleepNanoseconds);
    }
    sleeps->store(0);
    if (there || look()) return absl::OkStatus();
  }
  return absl::CancelledError("the other end was waited for in vain");
}

void SharedRing::Wake(std::atomic<uint32_t>* changes, std::atomic<uint32_t>* sleeps) {
  changes->fetch_add(1);
  if (sleeps->load() != 0) syscall(SYS_futex, changes, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

void SharedRing::Interrupt() {
  Wake(&positions_->writes, &positions_->reader_sleeps);
  Wake(&positions_->reads, &positions_->writer_sleeps);
}

absl::StatusOr<char*> SharedRing::Reserve(size_t size, KeepWaiting keep_waiting) {
  const size_t whole = sizeof(Header) + RoundUp(size);
  const size_t to_end = kRoomBytes - at_ % kRoomBytes;
  // Frames lie in one piece.
  const size_t skipped = to_end < whole ? to_end : 0;
  const auto fits = [&] {
    const uint64_t read = positions_->read.load(std::memory_order_acquire);
    return read <= at_ && at_ + skipped + whole - read <= kRoomBytes;
  };
  if (!fits()) {
    WakeReader();
    if (absl::Status waited = Await(&positions_->reads, &positions_->writer_sleeps, fits, keep_waiting); !waited.ok()) {
      return waited;
    }
  }
  if (skipped > 0) {
    std::memcpy(room_ + at_ % kRoomBytes, &kSkip, sizeof(kSkip));
    at_ += skipped;
  }
  next_ = at_ + whole;
  size_ = size;
  return room_ + at_ % kRoomBytes + sizeof(Header);
}

void SharedRing::WakeReader() {
  untold_ = 0;
  Wake(&positions_->writes, &positions_->reader_sleeps);
}

void SharedRing::Commit(absl::string_view about, bool more) {
  Header header = {};
  header.values_size = static_cast<uint32_t>(size_);
  header.about_size = static_cast<uint32_t>(about.size());
  std::memcpy(header.about, about.data(), about.size());
  std::memcpy(room_ + at_ % kRoomBytes, &header, sizeof(header));
  untold_ += next_ - at_;
  at_ = next_;
  positions_->written.store(at_, std::memory_order_release);
  if (!more || untold_ >= kWorthWaking) WakeReader();
}

absl::StatusOr<SharedRing::Frame> SharedRing::Next(KeepWaiting keep_waiting) {
  const auto nonsense = [] { return absl::DataLossError("the frames in shared memory are damaged"); };
  uint64_t written = 0;
  const auto there = [&] {
    written = positions_->written.load(std::memory_order_acquire);
    return written != at_;
  };
  if (absl::Status waited = Await(&positions_->writes, &positions_->reader_sleeps, there, keep_waiting); !waited.ok()) {
    return waited;
  }
  const auto holds = [&](size_t size) {
    return written - at_ <= kRoomBytes && size <= written - at_ && size <= kRoomBytes - at_ % kRoomBytes;
  };
  uint32_t mark = 0;
  if (at_ % kLine != 0 || !holds(sizeof(mark))) return nonsense();
  std::memcpy(&mark, room_ + at_ % kRoomBytes, sizeof(mark));
  if (mark == kSkip) {
    const size_t skipped = kRoomBytes - at_ % kRoomBytes;
    if (!holds(skipped)) return nonsense();
    at_ += skipped;
  }
  Header header;
  if (!holds(sizeof(header))) return nonsense();
  const char* const frame = room_ + at_ % kRoomBytes;
  std::memcpy(&header, frame, sizeof(header));
  if (header.about_size > kAboutBytes || header.values_size > kMostValues ||
      !holds(sizeof(header) + RoundUp(header.values_size))) {
    return nonsense();
  }
  std::memcpy(about_, header.about, header.about_size);
  next_ = at_ + sizeof(header) + RoundUp(header.values_size);
  return Frame{{about_, header.about_size}, {frame + sizeof(header), header.values_size}};
}

void SharedRing::Release() {
  at_ = next_;
  positions_->read.store(at_, std::memory_order_release);
  // A writer sleeps when there is little room left; half of it is soon empty, as the reader reads all that there is.
  if (positions_->written.load(std::memory_order_acquire) - at_ <= kRoomBytes / 2) {
    Wake(&positions_->reads, &positions_->writer_sleeps);
  }
}

}  // namespace millrace
