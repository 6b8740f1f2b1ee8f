// The instruction set level in use. MIXPOL_CPU_ISA=base|avx2|avx512 may lower it, never raise it.
#pragma once

#include "cpu/args.h"

namespace mixpol::cpu {

enum class Isa : int64_t { base = 0, avx2 = 1, avx512 = 2 };

Isa isa();
const Kernels& kernels();

}  // namespace mixpol::cpu
