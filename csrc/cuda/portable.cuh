// What kernel sources write instead of CUDA's launch and shared-memory syntax, so that a host compiler takes
// them too: tests/cuda_host runs the same kernels on the CPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <cstdio>

#define MIXPOL_SHARED(T, name)                                          \
    extern __shared__ __align__(16) unsigned char mixpol_shared_data[]; \
    T* name = reinterpret_cast<T*>(mixpol_shared_data)
// A kernel name with a comma needs parentheses.
#define MIXPOL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    (kernel)<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define MIXPOL_NOINLINE __noinline__
// Ends the kernel, and with it the process's use of the device, as an assertion does.
#define MIXPOL_REFUSE(...)   \
    do {                     \
        printf(__VA_ARGS__); \
        __trap();            \
    } while (0)

namespace mixpol::cuda {

// Lets a kernel have this much dynamic shared memory: beyond 48 KiB it has to be asked for.
template <class Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
    if (bytes > 48 * 1024)
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace mixpol::cuda

#else

#include "cuda_host.h"

#endif

namespace mixpol::cuda {

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
// From memory that no kernel writes meanwhile: goes through the read-only cache.
__device__ __forceinline__ float4 fetch4(const float* p) { return __ldg(reinterpret_cast<const float4*>(p)); }
__device__ __forceinline__ void store4(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }

// The sum or the largest over a warp, in every lane, always in the same order.
__device__ __forceinline__ float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

__host__ __device__ __forceinline__ int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace mixpol::cuda
