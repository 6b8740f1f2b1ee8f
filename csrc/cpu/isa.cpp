#include "cpu/isa.h"

#include <cstdlib>
#include <string_view>

namespace mixpol::cpu {

extern const Kernels kernels_base;
#if defined(MIXPOL_HAVE_avx2)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

namespace {

Isa detect() {
#if defined(MIXPOL_HAVE_avx2)
    Isa best = Isa::base;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
        best = Isa::avx2;
    if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        best = Isa::avx512;
    if (best == Isa::avx512 && __builtin_cpu_supports("avx512bf16")) best = Isa::avx512_bf16;
    const char* wish = std::getenv("MIXPOL_CPU_ISA");
    std::string_view name = wish ? wish : "";
    if (name == "base") return Isa::base;
    if (name == "avx2" && best > Isa::avx2) return Isa::avx2;
    if (name == "avx512" && best > Isa::avx512) return Isa::avx512;
    return best;
#else
    return Isa::base;
#endif
}

}  // namespace

Isa isa() {
    static const Isa level = detect();
    return level;
}

const Kernels& kernels() {
#if defined(MIXPOL_HAVE_avx2)
    if (isa() >= Isa::avx512) return kernels_avx512;  // avx512_bf16: with products in bfloat16 pairs
    if (isa() == Isa::avx2) return kernels_avx2;
#endif
    return kernels_base;
}

bool multiplies_halves() {
    static const bool emulated = [] {
        const char* wish = std::getenv("MIXPOL_EMULATE_BF16");
        return wish && std::string_view(wish) == "1" && isa() < Isa::avx512;
    }();
    return emulated || isa() == Isa::avx512_bf16;
}

}  // namespace mixpol::cpu
