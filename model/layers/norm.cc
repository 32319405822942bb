#include "model/layers/norm.h"

#include "kernels/rows.h"

namespace millrace::model {

void NormForward(const kernels::Compute& compute, NormKind kind, const float* x, const float* gain, const float* bias,
                 float epsilon, int64_t rows, int64_t columns, float* y, float* mean, float* rstd) {
  if (kind == NormKind::kLayer) {
    kernels::LayerNormRows(compute, x, gain, bias, epsilon, rows, columns, y, mean, rstd);
  } else {
    kernels::RmsNormRows(compute, x, gain, epsilon, rows, columns, y, rstd);
  }
}

void NormBackward(const kernels::Compute& compute, NormKind kind, const float* x, const float* gain, const float* mean,
                  const float* rstd, const float* dy, int64_t rows, int64_t columns, float* dx, float* dgain,
                  float* dbias) {
  if (kind == NormKind::kLayer) {
    kernels::LayerNormRowsBackward(compute, x, gain, mean, rstd, dy, rows, columns, dx, dgain, dbias);
  } else {
    kernels::RmsNormRowsBackward(compute, x, gain, rstd, dy, rows, columns, dx, dgain);
  }
}

}  // namespace millrace::model
