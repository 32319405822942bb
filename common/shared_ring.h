// A queue of frames in memory that two processes share: one writes them, the other reads them where they lie.
//
// A frame is a few bytes that say what it is, and values. Neither end trusts what the other writes: numbers are read
// once and checked.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace millrace {

// Whether it is worth waiting on; asked after an Interrupt, and now and then. What came before it said no is not lost.
using KeepWaiting = absl::FunctionRef<bool()>;

// Both ends' view of one ring; the same bytes at each. Not thread-safe: each end is one thread's at a time.
class SharedRing {
 public:
  static constexpr size_t kAboutBytes = 112;      // what may be said of a frame's values
  static constexpr size_t kHeaderBytes = 128;     // before a frame's values
  static constexpr size_t kMostValues = 1 << 19;  // bytes of a frame
  // Of the ring: a frame lies in one piece, so that up to a frame's size may be left empty before the largest.
  static constexpr size_t kRoomBytes = 2 * (kMostValues + kHeaderBytes);
  static constexpr size_t kBytes = kRoomBytes + 256;  // of memory

  // `memory`: kBytes aligned to 64, zeros at first, which outlive the ring.
  explicit SharedRing(char* memory);

  // ---- the writer's end ----
  // Where the values of the next frame go. Requires size <= kMostValues. CANCELLED if waiting for room was given up.
  absl::StatusOr<char*> Reserve(size_t size, KeepWaiting keep_waiting);
  // Hands the frame over. Requires a Reserve before, and about.size() <= kAboutBytes. If there are `more` to come soon,
  // a reader that sleeps is not woken for a few bytes: it may see them only some time later, with others.
  void Commit(absl::string_view about, bool more = false);

  // ---- the reader's end ----
  struct Frame {
    absl::string_view about;
    absl::string_view values;
  };
  // The next frame, good until Release. CANCELLED if waiting for it was given up; DATA_LOSS for nonsense.
  absl::StatusOr<Frame> Next(KeepWaiting keep_waiting);
  void Release();

  // Has whoever waits at this ring ask whether to go on. From any thread.
  void Interrupt();

 private:
  struct Positions;
  struct Header;

  // Waits until `look` says that there is something to do.
  absl::Status Await(std::atomic<uint32_t>* changes, std::atomic<uint32_t>* sleeps, absl::FunctionRef<bool()> look,
                     KeepWaiting keep_waiting);
  static void Wake(std::atomic<uint32_t>* changes, std::atomic<uint32_t>* sleeps);
  void WakeReader();

  Positions* const positions_;
  char* const room_;
  // This end's own: of the writer or of the reader.
  uint64_t at_ = 0;
  uint64_t next_ = 0;        // behind the frame at hand
  size_t size_ = 0;          // of its values
  uint64_t untold_ = 0;      // the writer's: bytes that a sleeping reader was not woken for
  char about_[kAboutBytes];  // a copy of what was said
};

}  // namespace millrace
