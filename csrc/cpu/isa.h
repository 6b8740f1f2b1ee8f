// The instruction set level in use. MIXPOL_CPU_ISA=base|avx2|avx512|avx512_bf16 may lower it, never raise it.
#pragma once

#include "cpu/args.h"

namespace mixpol::cpu {

enum class Isa : int64_t { base = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

Isa isa();
const Kernels& kernels();

// Whether tokens in bfloat16 are multiplied in pairs: where the CPU can. MIXPOL_EMULATE_BF16=1, for tests,
// has the levels without AVX-512 compute the same.
bool multiplies_halves();

}  // namespace mixpol::cpu
