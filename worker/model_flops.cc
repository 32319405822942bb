#include "worker/model_flops.h"

namespace millrace::worker {

double ModelFlops(const PhaseModel& model, const v1::TensorTable& table, const v1::WorkUnit& unit) {
  const model::Network& network = *model.network;
  double used = 0, trained = 0;
  for (int i = 0; i < network.tensors().size(); ++i) {
    const model::TensorSpec& tensor = network.tensors()[i];
    if (tensor.role != model::Role::kMatrix && i != network.output_embedding() && i != network.score()) continue;
    used += static_cast<double>(tensor.size);
    if (table.tensors(model.places[static_cast<size_t>(i)]).trainable()) trained += static_cast<double>(tensor.size);
  }
  if (model.adapter != nullptr) {
    used += static_cast<double>(model.adapter->tensors().parameters());
    trained += static_cast<double>(model.adapter->tensors().parameters());
  }
  const bool attends = network.spec().family() != "lstm" && network.spec().family() != "cnn";
  double flops = 0;
  for (const v1::Microbatch& microbatch : unit.microbatches()) {
    if (microbatch.columns() < 2) continue;
    const double columns = microbatch.columns() - 1;  // the last is only a target
    const double attention =
        attends ? 4.0 * network.spec().layers() * static_cast<double>(network.hidden_size()) * columns : 0;
    const double forward = 2 * used + attention;
    const double backward = 2 * used + 2 * trained + 2 * attention;
    flops += microbatch.rows() * columns * (unit.kind() == v1::WorkUnit::TRAIN ? forward + backward : forward);
  }
  return flops;
}

}  // namespace millrace::worker
