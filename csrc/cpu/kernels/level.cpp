// This level's kernels as one table.
#include "cpu/kernels/level.h"

#define MIXPOL_JOIN_(a, b) a##b
#define MIXPOL_JOIN(a, b) MIXPOL_JOIN_(a, b)

namespace mixpol::cpu {

extern const Kernels MIXPOL_JOIN(kernels_, MIXPOL_ISA);

const Kernels MIXPOL_JOIN(kernels_, MIXPOL_ISA) = {
#define MIXPOL_KERNEL(result, name, parameters) MIXPOL_ISA::name,
#include "cpu/kernels.inc"
#undef MIXPOL_KERNEL
};

}  // namespace mixpol::cpu
