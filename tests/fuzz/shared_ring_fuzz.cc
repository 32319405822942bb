// Whatever stands in shared memory, a reader gets frames that lie within it, or none.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "common/shared_ring.h"

namespace {

using millrace::SharedRing;

// The first 8 bytes are what the writer says it has written, the others begin the room.
void Fill(const uint8_t* data, size_t size, char* memory) {
  std::memset(memory, 0, SharedRing::kBytes);
  if (size < sizeof(uint64_t)) return;
  std::memcpy(memory, data, sizeof(uint64_t));
  std::memcpy(memory + SharedRing::kBytes - SharedRing::kRoomBytes, data + sizeof(uint64_t), size - sizeof(uint64_t));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > SharedRing::kRoomBytes) return 0;
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t(64)); }
  };
  static const std::unique_ptr<char, Free> memory(
      static_cast<char*>(::operator new(SharedRing::kBytes, std::align_val_t(64))));
  Fill(data, size, memory.get());
  SharedRing ring(memory.get());
  for (int i = 0; i < 100; ++i) {
    const auto frame = ring.Next([] { return false; });
    if (!frame.ok()) break;
    const char* const room = memory.get() + SharedRing::kBytes - SharedRing::kRoomBytes;
    if (frame->about.size() > SharedRing::kAboutBytes || frame->values.data() < room ||
        frame->values.data() + frame->values.size() > memory.get() + SharedRing::kBytes) {
      abort();
    }
    ring.Release();
  }
  return 0;
}
