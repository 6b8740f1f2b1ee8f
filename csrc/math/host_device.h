// Functions that CPU and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define MIXPOL_HD __host__ __device__ __forceinline__
#else
#define MIXPOL_HD static inline __attribute__((always_inline))
#endif
