// What the coordinator tells Prometheus (docs/metrics.md has the whole table).
#pragma once

#include <cstdint>

#include "common/metrics.h"

namespace millrace::coordinator {
