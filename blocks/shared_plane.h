// The memory through which a shard and a worker of one machine pass blocks: a ring for each direction, and what proves
// to each end that the other sees the same memory.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/shared_memory.h"
#include "common/shared_ring.h"

namespace millrace::blocks {

class SharedPlane {
 public:
  // The worker's end. UNAVAILABLE: there is no memory to share.
  static absl::StatusOr<std::unique_ptr<SharedPlane>> Create();
  // The shard's end. NOT_FOUND: there is no such memory here, or whoever gave the digest does not see it; nothing has
  // been written into it then.
  static absl::StatusOr<std::unique_ptr<SharedPlane>> Open(const std::string& name, absl::string_view workers_digest);

  std::string name() const { return memory_->name(); }
  // Each end writes a secret into the memory and shows its digest over the network: the other end then knows that it
  // sees the same memory, and that nobody else asks.
  std::string WorkersDigest() const { return DigestOf(kSecretBytes); }
  // Of both secrets, so that it takes the worker's to know it.
  std::string ShardsDigest() const { return DigestOf(2 * kSecretBytes); }

  SharedRing* to_shard() { return &to_shard_; }
  SharedRing* to_worker() { return &to_worker_; }
  // Has whoever waits for the other end ask whether to go on.
  void Interrupt();

 private:
  static constexpr size_t kSecretBytes = 64;
  static constexpr size_t kBytes = 2 * kSecretBytes + 2 * SharedRing::kBytes;

  explicit SharedPlane(std::unique_ptr<SharedMemory> memory);
  std::string DigestOf(size_t bytes) const;
  absl::Status WriteSecret(size_t offset);

  const std::unique_ptr<SharedMemory> memory_;
  SharedRing to_shard_, to_worker_;
};

}  // namespace millrace::blocks
