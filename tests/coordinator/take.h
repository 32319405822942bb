// Takes units from a board as a worker's call does that waits for them.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "coordinator/work_board.h"

namespace millrace::coordinator {

inline absl::StatusOr<std::vector<v1::WorkUnit>> Take(WorkBoard* board, const std::string& worker,
                                                      absl::Time deadline = absl::InfiniteFuture()) {
  absl::StatusOr<std::vector<v1::WorkUnit>> taken;
  absl::Notification answered;
  board->Take(worker, 1, deadline, [&](absl::StatusOr<std::vector<v1::WorkUnit>> units) {
    taken = std::move(units);
    answered.Notify();
  });
  answered.WaitForNotification();
  return taken;
}

}  // namespace millrace::coordinator
