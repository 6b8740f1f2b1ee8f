// What every CUDA launcher does: check tensors, read layouts, and start kernels on the current stream. Values
// of offsets, lengths and ids are checked on the device (checks.cuh): nothing here waits for it.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/args.cuh"
#include "cuda/checks.cuh"

namespace mixpol::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
// A list that may be empty: an exported model (AOTInductor) loses empty lists on the way, but not None.
using OptionalTensors = std::optional<std::vector<Tensor>>;

inline std::vector<Tensor> list_of(const OptionalTensors& tensors) {
    return tensors ? *tensors : std::vector<Tensor>{};
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::runtime_error(text.str());
}

// The device of an op's first tensor, made the current one while this lives, and its current stream.
class Device {
 public:
    explicit Device(const Tensor& tensor, const char* name);

    cudaStream_t stream() const { return stream_; }
    int64_t shared_limit() const;  // bytes that one block can have

    // A contiguous, uninitialised tensor there, from torch's allocator. It may go when its launcher returns:
    // the memory is given out again in the order of the stream.
    Tensor tensor(const std::vector<int64_t>& sizes, ScalarType type) const;
    Tensor floats(const std::vector<int64_t>& sizes) const { return tensor(sizes, ScalarType::Float); }

    // Raises what a launch has reported since the last call.
    void check_launches() const;

    void require(const Tensor& tensor, const char* name) const;

    // A float32 tensor there with the given sizes (-1: any): itself, or a contiguous copy.
    Tensor read_floats(const Tensor& tensor, const char* name, std::initializer_list<int64_t> sizes) const;

    // The same, for rows that may lie at any stride: only the last dimension is made contiguous.
    Tensor read_rows(const Tensor& tensor, const char* name, int64_t width) const;

 private:
    int index_;
    torch::stable::accelerator::DeviceGuard guard_;
    cudaStream_t stream_;
};

inline const float* data_of(const Tensor& tensor) {
    return static_cast<const float*>(tensor.const_data_ptr());
}
inline float* mutable_data_of(Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }

Tensor as_contiguous(const Tensor& tensor);
std::vector<int64_t> sizes_of(const Tensor& tensor);

// Rows [N, D], [B, L, D] or a table [V, D].
Rows rows_of(const Tensor& tensor);

// What keeps the tensors alive that kernels read, until they have been started.
using Alive = std::vector<Tensor>;

History read_history(const Device& device, int64_t users, const std::vector<int64_t>& token_shape,
                     const OptionalTensor& offsets, const OptionalTensor& lengths, const OptionalTensor& mask,
                     Alive& alive);

// The layout of ids alone: in one dimension without offsets, every position is kept.
History read_ids_history(const Device& device, const Tensor& ids, const OptionalTensor& offsets,
                         const OptionalTensor& lengths, const OptionalTensor& mask, Alive& alive);

// Ids of a history's positions; their values are left to `checks`.
Ids read_ids(const Device& device, const Tensor& ids, const char* name, int64_t rows, Argument argument,
             Checks& checks, Alive& alive);

ActivationUnit read_unit(const Device& device, int64_t width, const std::vector<Tensor>& weights,
                         const std::vector<Tensor>& biases, const std::vector<Tensor>& slopes,
                         int64_t activation, int64_t normalize, double dropout, Alive& alive);

PolarityFusion read_fusion(const Device& device, int64_t width, const OptionalTensor& polarity,
                           const OptionalTensor& table, const Tensor& sign, const std::vector<Tensor>& gate,
                           const OptionalTensor& extra_ids, const OptionalTensor& extra_table, Checks& checks,
                           Alive& alive);

// Packs a pass's parameters on the stream.
void pack_parameters(const Device& device, Pass& pass, Alive& alive);

}  // namespace mixpol::cuda
