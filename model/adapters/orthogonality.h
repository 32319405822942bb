// Keeps AdaLoRA's matrices near orthogonal ones, so that its singular values mean something (Zhang et al. 2023,
// equation 4, as peft has it): a term of the loss that is a function of the weights alone,
//
//   R = mean over all A and B of |A Aᵀ - I| and |Bᵀ B - I|, by Frobenius
#pragma once

#include <cstdint>

#include "kernels/compute.h"
#include "model/adapters/adapter.h"

namespace millrace::model {

// Adds `scale` times the gradient of R by the tensors of `group` to `gradients`; returns what they contribute to R,
// which is the sum over all groups. Weights and gradients are laid out as the adapter's tensors, and only those of the
// group are read. 0 for an adapter without such matrices.
double AddOrthogonality(const kernels::Compute& compute, const Adapter& adapter, uint32_t group, double scale,
                        const float* weights, float* gradients);

}  // namespace millrace::model
