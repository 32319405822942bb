// An adapter_config.json that parses must make an adapter or be refused, and come back as it was written.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "model/families/network.h"
#include "model/formats/peft.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using millrace::model::Adapter;
  using millrace::model::Network;
  static const std::unique_ptr<Network>& network = *new std::unique_ptr<Network>([] {
    millrace::v1::ModelSpec spec;
    spec.set_family("llama");
    spec.set_layers(2);
    spec.set_hidden_size(8);
    spec.set_heads(2);
    spec.set_kv_heads(1);
    spec.set_intermediate_size(8);
    spec.set_context(16);
    spec.set_rope_theta(10000);
    spec.set_norm_epsilon(1e-5);
    return *millrace::model::CreateNetwork(spec, 11);
  }());
  const absl::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto spec = millrace::model::ParseAdapterConfig(bytes, "fuzz", network->spec());
  if (!spec.ok() || spec->rank() > 64 || spec->virtual_tokens() > 64 || spec->encoder_hidden_size() > 64) return 0;
  const auto adapter = Adapter::Create(*spec, network->spec(), network->linear_sites());
  if (!adapter.ok()) return 0;
  const std::string written = millrace::model::PrintAdapterConfig(**adapter, network->spec(), "base");
  const auto again = millrace::model::ParseAdapterConfig(written, "written", network->spec());
  if (!again.ok()) abort();
  const auto same = Adapter::Create(*again, network->spec(), network->linear_sites());
  if (!same.ok() || (*same)->tensors().size() != (*adapter)->tensors().size()) abort();
  for (int i = 0; i < (*same)->tensors().size(); ++i) {
    if ((*same)->tensors()[i].name != (*adapter)->tensors()[i].name) abort();
  }
  if ((*same)->low_rank_scale() != (*adapter)->low_rank_scale()) abort();
  return 0;
}
