// What members say to their coordinator: any bytes leave its books in order. The first byte says which message the
// others are: 0 a JoinRequest, 1 a call for work with results, 2 the table of a model's tensors.
#include <google/protobuf/stubs/logging.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "blocks/block_table.h"
#include "coordinator/members.h"
#include "coordinator/work_board.h"
#include "proto/millrace/v1/coordinator.pb.h"

namespace {

using namespace millrace;
using namespace millrace::coordinator;

constexpr uint32_t kUnits = 3;

void Join(const v1::JoinRequest& request) {
  Members members({.limit = 2});
  const auto joined = members.Join(request, absl::UnixEpoch());
  const size_t there = members.Living(v1::WORKER).size() + members.Living(v1::SHARD).size();
  if (there != (joined.ok() ? 1u : 0u)) abort();
  if (!joined.ok()) return;
  if (members.Join(request, absl::UnixEpoch()).ok()) abort();  // the name is taken
  if (!members.Hear(joined->member_id(), 0, absl::UnixEpoch()).ok()) abort();
}

// The units 0 and 1 are the worker's, 2 is another's.
void Work(const v1::NextWorkRequest& request) {
  WorkBoard board({}, [] { return absl::UnixEpoch(); });
  auto context = std::make_shared<v1::PhaseContext>();
  context->set_epoch(1);
  board.SetContext(context);
  board.Admit("w");
  board.Admit("other");
  std::vector<v1::WorkUnit> units(kUnits);
  for (uint32_t i = 0; i < kUnits; ++i) {
    units[i].set_kind(v1::WorkUnit::TRAIN);
    units[i].set_epoch(1);
    units[i].set_unit(i);
  }
  board.Offer(units);
  const auto take = [&board](const char* worker, uint32_t limit) {
    board.Take(worker, limit, absl::InfinitePast(), [limit](absl::StatusOr<std::vector<v1::WorkUnit>> given) {
      if (!given.ok() || given->size() != limit) abort();
    });
  };
  take("w", kUnits - 1);
  take("other", 1);
  const std::vector<v1::WorkResult> results(request.results().begin(), request.results().end());
  board.Report("w", results);
  const WorkBoard::Counts counts = board.counts();
  if (counts.accepted + counts.repeated + counts.stale + counts.failed != results.size()) abort();
  if (counts.accepted > kUnits - 1) abort();
  // The other's unit is still to be done.
  bool looked = false;
  if (board.Await([&looked] { return looked = true; }).ok()) abort();
  board.Dismiss("w");
  board.Dismiss("other");
}

void Plan(const v1::TensorTable& table) {
  const auto blocks = blocks::BlockTable::Create(table);
  if (!blocks.ok()) return;
  if (blocks->tensors().size() != static_cast<size_t>(table.tensors_size()) || blocks->parameters() <= 0) abort();
  int64_t parameters = 0;
  for (const blocks::Block& block : blocks->blocks()) parameters += block.size;
  if (parameters != blocks->parameters()) abort();
}

template <typename Message>
void Try(void (*function)(const Message&), const uint8_t* data, size_t size) {
  Message message;
  if (message.ParseFromArray(data, static_cast<int>(size))) function(message);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // It tells of each text that is no UTF-8.
  static const google::protobuf::LogHandler* const silenced = google::protobuf::SetLogHandler(nullptr);
  (void)silenced;
  if (size == 0) return 0;
  const uint8_t which = data[0] % 3;
  ++data;
  --size;
  if (which == 0) Try<v1::JoinRequest>(&Join, data, size);
  if (which == 1) Try<v1::NextWorkRequest>(&Work, data, size);
  if (which == 2) Try<v1::TensorTable>(&Plan, data, size);
  return 0;
}
