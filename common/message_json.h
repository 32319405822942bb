// Prints messages of the wire as JSON, for `--json` and for pages.
#pragma once

#include "google/protobuf/message.h"
#include "nlohmann/json.hpp"

namespace millrace {

// Fields by their names in the .proto file; 64-bit numbers as numbers (protobuf's own JSON has them as strings),
// enumerations by name, maps as objects, numbers that are not finite as null. Scalars at their default are there too;
// submessages and `optional` fields that are absent are not.
nlohmann::ordered_json ToJson(const google::protobuf::Message& message);

}  // namespace millrace
