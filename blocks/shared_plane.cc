#include "blocks/shared_plane.h"

#include <sys/random.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/checksum.h"
#include "common/status.h"

namespace millrace::blocks {

SharedPlane::SharedPlane(std::unique_ptr<SharedMemory> memory)
    : memory_(std::move(memory)),
      to_shard_(memory_->data() + 2 * kSecretBytes),
      to_worker_(memory_->data() + 2 * kSecretBytes + SharedRing::kBytes) {}

absl::StatusOr<std::unique_ptr<SharedPlane>> SharedPlane::Create() {
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<SharedMemory> memory, SharedMemory::Create(kBytes));
  std::unique_ptr<SharedPlane> plane(new SharedPlane(std::move(memory)));
  MILLRACE_RETURN_IF_ERROR(plane->WriteSecret(0));
  return plane;
}

absl::StatusOr<std::unique_ptr<SharedPlane>> SharedPlane::Open(const std::string& name,
                                                               absl::string_view workers_digest) {
  MILLRACE_ASSIGN_OR_RETURN(std::unique_ptr<SharedMemory> memory, SharedMemory::Open(name, kBytes));
  std::unique_ptr<SharedPlane> plane(new SharedPlane(std::move(memory)));
  if (plane->WorkersDigest() != workers_digest) return absl::NotFoundError("it is another's memory");
  MILLRACE_RETURN_IF_ERROR(plane->WriteSecret(kSecretBytes));
  return plane;
}

void SharedPlane::Interrupt() {
  to_shard_.Interrupt();
  to_worker_.Interrupt();
}

std::string SharedPlane::DigestOf(size_t bytes) const { return Sha256Hex(absl::string_view(memory_->data(), bytes)); }

absl::Status SharedPlane::WriteSecret(size_t offset) {
  if (getrandom(memory_->data() + offset, kSecretBytes, 0) == static_cast<ssize_t>(kSecretBytes)) {
    return absl::OkStatus();
  }
  return absl::UnavailableError("no random numbers");
}

}  // namespace millrace::blocks
