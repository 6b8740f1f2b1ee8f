// CUDA C++ kernels on the CPU, for tests: the part of the CUDA language that csrc/cuda uses, for a host
// compiler. Every CUDA thread is a fiber with a stack of its own, blocks run one after the other, and a
// barrier or a warp's vote suspends a fiber until its partners have come (scheduler: cuda_host.cpp). It
// checks logic, indices and synchronisation, not speed. x86-64 only.
//
// Stricter than a GPU: block sizes are multiples of 32, every lane takes part in every vote and shuffle, and
// a thread that has returned is still waited for. Dynamic shared memory has exactly the size that was asked
// for and is full of NaN when a block begins.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (cuda_host::running->thread)
#define blockIdx (cuda_host::running->block)
#define blockDim (cuda_host::running->block_size)
#define gridDim (cuda_host::running->grid_size)

#define MIXPOL_SHARED(T, name) T* name = reinterpret_cast<T*>(cuda_host::running->shared)
#define MIXPOL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    ((void)(stream), cuda_host::run_grid(grid, block, shared_bytes, [&] { (kernel)(__VA_ARGS__); }))
#define MIXPOL_REFUSE(...) cuda_host::refuse(__VA_ARGS__)
#define MIXPOL_NOINLINE __attribute__((noinline))

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using cudaStream_t = void*;

namespace cuda_host {

// What a CUDA thread knows of itself.
struct Thread {
    dim3 grid_size, block_size, block, thread;
    unsigned lane = 0;
    void* shared = nullptr;
};
inline const Thread* running = nullptr;
inline bool backwards = false;  // run the threads of a block from the last to the first
// A barrier to leave out, as "file.cuh:line": a planted mistake, for tests of the tests.
inline const char* left_out = nullptr;

// Runs kernel() once per CUDA thread. Throws std::runtime_error when threads wait for ever or refuse.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

void wait_for_block();
bool is_left_out(const char* path, int line);
[[noreturn, gnu::format(printf, 1, 2)]] void refuse(const char* format, ...);

// Every lane of a warp hands in a value and gets those of all 32 lanes, valid until its next exchange.
const uint64_t* exchange(uint64_t value, const char* what);

template <class T>
T from_lane(T value, unsigned lane, const char* what) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    uint64_t mine = 0;
    std::memcpy(&mine, &value, sizeof value);
    std::memcpy(&value, &exchange(mine, what)[lane % 32], sizeof value);
    return value;
}

void need_all_lanes(unsigned mask);

}  // namespace cuda_host

inline void __syncthreads(const char* path = __builtin_FILE(), int line = __builtin_LINE()) {
    if (!cuda_host::left_out || !cuda_host::is_left_out(path, line)) cuda_host::wait_for_block();
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
    cuda_host::need_all_lanes(mask);
    return cuda_host::from_lane(value, static_cast<unsigned>(lane), "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
    cuda_host::need_all_lanes(mask);
    return cuda_host::from_lane(value, cuda_host::running->lane ^ static_cast<unsigned>(bits),
                                "__shfl_xor_sync");
}
inline unsigned __ballot_sync(unsigned mask, bool yes) {
    cuda_host::need_all_lanes(mask);
    const uint64_t* all = cuda_host::exchange(yes, "__ballot_sync");
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++) votes |= static_cast<unsigned>(all[lane]) << lane;
    return votes;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
template <class T>
T __ldg(const T* p) {
    return *p;
}

namespace mixpol::cuda {

template <class Kernel>
void allow_shared(Kernel*, size_t) {}

}  // namespace mixpol::cuda
