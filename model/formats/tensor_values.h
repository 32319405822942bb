// Reads a safetensors tensor's values as f32.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/safetensors.h"

namespace millrace::model {

// Fills `to` from F32, F16 or BF16. INVALID_ARGUMENT for another dtype and for a value that is not finite.
absl::Status ReadValues(const SafetensorsEntry& entry, absl::string_view bytes, float* to);

}  // namespace millrace::model
