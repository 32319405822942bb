#include "model/layers/linear.h"

#include "kernels/rows.h"

namespace millrace::model {

using kernels::Operand;
using kernels::Product;

void LinearForward(const kernels::Compute& compute, const Linear& linear, const float* x, int64_t rows,
                   const float* weight, const float* bias, float* y, int64_t y_stride) {
  Product product = {.m = rows, .n = linear.outputs, .k = linear.inputs};
  product.a = {x, linear.inputs, 1};
  product.b = linear.inputs_first ? Operand{weight, linear.outputs, 1} : Operand{weight, linear.inputs, 1}.Transposed();
  product.c = y;
  product.c_stride = y_stride;
  product.bias = bias;
  product.precision = linear.precision;
  kernels::Multiply(compute, product);
}

void LinearBackward(const kernels::Compute& compute, const Linear& linear, const float* x, int64_t rows,
                    const float* weight, const float* dy, int64_t dy_stride, float* dx, bool accumulate, float* dweight,
                    float* dbias) {
  const Operand output_gradient = {dy, dy_stride, 1};
  const Operand input = {x, linear.inputs, 1};
  if (dx != nullptr) {
    Product product = {.m = rows, .n = linear.inputs, .k = linear.outputs};
    product.a = output_gradient;
    product.b =
        linear.inputs_first ? Operand{weight, linear.outputs, 1}.Transposed() : Operand{weight, linear.inputs, 1};
    product.c = dx;
    product.c_stride = linear.inputs;
    product.accumulate = accumulate;
    product.precision = linear.precision;
    kernels::Multiply(compute, product);
  }
  if (dbias != nullptr) kernels::AddRows(compute, dy, rows, linear.outputs, dy_stride, dbias);
  if (dweight == nullptr) return;
  Product product = {.m = linear.inputs_first ? linear.inputs : linear.outputs,
                     .n = linear.inputs_first ? linear.outputs : linear.inputs,
                     .k = rows};
  product.a = linear.inputs_first ? input.Transposed() : output_gradient.Transposed();
  product.b = linear.inputs_first ? output_gradient : input;
  product.c = dweight;
  product.c_stride = product.n;
  product.accumulate = true;
  product.precision = linear.precision;
  kernels::Multiply(compute, product);
}

}  // namespace millrace::model
