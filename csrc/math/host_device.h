// Functions that CPU and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define MIXPOL_BOTH __host__ __device__
#define MIXPOL_HD MIXPOL_BOTH __forceinline__
#else
#define MIXPOL_BOTH
#define MIXPOL_HD static inline __attribute__((always_inline))
#endif
