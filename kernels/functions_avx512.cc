// Compiled for AVX-512; see tile_avx512.cc.
#include "kernels/functions_loops.h"

namespace millrace::kernels {

const FunctionLoops kAvx512Functions = kLoops;

}  // namespace millrace::kernels
