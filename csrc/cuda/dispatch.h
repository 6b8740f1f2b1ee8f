// Torch's own ops on int64 tensors that launchers use, called through the dispatcher, and the one thing that
// waits for the device.
#pragma once

#include <array>
#include <tuple>

#include "cuda/launch.h"

namespace mixpol::cuda {

namespace detail {

template <size_t N>
void call(const char* op, const char* overload, std::array<StableIValue, N>& stack) {
    if (torch_call_dispatcher(op, overload, stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS)
        fail(op, " failed; torch says why in its own messages");
}

}  // namespace detail

// The values in order, and where each stood; equal ones keep their order.
inline std::tuple<Tensor, Tensor> sort_stably(const Tensor& values) {
    using torch::stable::detail::from;
    using torch::stable::detail::to;
    std::array<StableIValue, 4> stack{from(values), from(std::optional<bool>(true)), from(int64_t{0}),
                                      from(false)};
    detail::call("aten::sort", "stable", stack);
    return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

// Element i of the result is the sum of elements 0 ... i.
inline Tensor running_sum(const Tensor& values) {
    using torch::stable::detail::from;
    using torch::stable::detail::to;
    std::array<StableIValue, 3> stack{from(values), from(int64_t{0}), from(std::nullopt)};
    detail::call("aten::cumsum", "", stack);
    return to<Tensor>(stack[0]);
}

// One number from the device, once the stream has got there. Not possible while a graph is captured.
inline int64_t read_back(const int64_t* number, cudaStream_t stream) {
    int64_t value = 0;
    cudaError_t error = cudaMemcpyAsync(&value, number, sizeof value, cudaMemcpyDeviceToHost, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    if (error != cudaSuccess) fail("the size of a result could not be read: ", cudaGetErrorString(error));
    return value;
}

}  // namespace mixpol::cuda
