// bfloat16 and float16 in memory, float32 in registers. Narrowing rounds to nearest even; NaN stays NaN.
#pragma once

#include "cpu/args.h"
#include "cpu/simd.h"

namespace mixpol::cpu::MIXPOL_ISA {

typedef uint16_t halves __attribute__((vector_size(W * 2)));
typedef uint32_t uvec __attribute__((vector_size(W * 4)));

MIXPOL_INLINE vec from_bf16(halves h) {
    uvec bits = __builtin_convertvector(h, uvec) << 16;
    vec v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

MIXPOL_INLINE halves to_bf16(vec v) {
    uvec bits;
    std::memcpy(&bits, &v, sizeof bits);
    uvec rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return __builtin_convertvector(v == v ? rounded : uvec{} + 0x7fc0, halves);
}

#if defined(MIXPOL_ISA_avx512)

MIXPOL_INLINE vec from_f16(halves h) {
    __m256i bits;
    std::memcpy(&bits, &h, sizeof bits);
    return _mm512_cvtph_ps(bits);
}
MIXPOL_INLINE halves to_f16(vec v) {
    __m256i bits = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    halves h;
    std::memcpy(&h, &bits, sizeof h);
    return h;
}

#elif defined(MIXPOL_ISA_avx2)

MIXPOL_INLINE vec from_f16(halves h) {
    __m128i bits;
    std::memcpy(&bits, &h, sizeof bits);
    return _mm256_cvtph_ps(bits);
}
MIXPOL_INLINE halves to_f16(vec v) {
    __m128i bits = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    halves h;
    std::memcpy(&h, &bits, sizeof h);
    return h;
}

#else

MIXPOL_INLINE float from_f16(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
    uint32_t bits = size << 13;
    if (size > 0x7c00) {
        bits |= 0x7fc00000u;  // NaN
    } else if (size == 0x7c00) {
        bits = 0x7f800000u;
    } else if (size >= 0x400) {
        bits += 112u << 23;  // the difference of the exponents' biases
    } else {
        const float subnormal = static_cast<float>(size) * 0x1p-24f;
        std::memcpy(&bits, &subnormal, sizeof bits);
    }
    bits |= sign;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
MIXPOL_INLINE uint16_t to_f16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) {
        bits = 0x7e00;
    } else if (bits >= 0x477ff000u) {  // 65520, halfway between the largest number and the next
        bits = 0x7c00;
    } else if (bits >= 0x38800000u) {  // 2^-14
        bits = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    } else {
        float size;
        std::memcpy(&size, &bits, sizeof size);
        size += 0.5f;  // whose last place is that of a subnormal half, so the sum is rounded as it should be
        std::memcpy(&bits, &size, sizeof bits);
        bits -= 0x3f000000u;
    }
    return static_cast<uint16_t>(sign | bits);
}
MIXPOL_INLINE vec from_f16(halves h) {
    vec v;
    for (int i = 0; i < W; i++) v[i] = from_f16(static_cast<uint16_t>(h[i]));
    return v;
}
MIXPOL_INLINE halves to_f16(vec v) {
    halves h;
    for (int i = 0; i < W; i++) h[i] = to_f16(static_cast<float>(v[i]));
    return h;
}

#endif

template <class Convert>
MIXPOL_INLINE void widen_with(float* to, const uint16_t* from, int64_t count, Convert&& convert) {
    int64_t i = 0;
    halves h{};
    for (; i + W <= count; i += W) {
        std::memcpy(&h, from + i, sizeof h);
        store(to + i, convert(h));
    }
    if (i == count) return;
    std::memcpy(&h, from + i, (count - i) * sizeof *from);
    vec rest = convert(h);
    std::memcpy(to + i, &rest, (count - i) * sizeof *to);
}

template <class Convert>
MIXPOL_INLINE void narrow_with(uint16_t* to, const float* from, int64_t count, Convert&& convert) {
    int64_t i = 0;
    for (; i + W <= count; i += W) {
        halves h = convert(load(from + i));
        std::memcpy(to + i, &h, sizeof h);
    }
    if (i == count) return;
    vec rest{};
    std::memcpy(&rest, from + i, (count - i) * sizeof *from);
    halves h = convert(rest);
    std::memcpy(to + i, &h, (count - i) * sizeof *to);
}

MIXPOL_INLINE void widen_half(float* to, const uint16_t* from, int64_t count, Element element) {
    if (element == Element::bf16) {
        widen_with(to, from, count, [](halves h) { return from_bf16(h); });
    } else {
        widen_with(to, from, count, [](halves h) { return from_f16(h); });
    }
}

MIXPOL_INLINE void narrow_half(uint16_t* to, const float* from, int64_t count, Element element) {
    if (element == Element::bf16) {
        narrow_with(to, from, count, [](vec v) { return to_bf16(v); });
    } else {
        narrow_with(to, from, count, [](vec v) { return to_f16(v); });
    }
}

}  // namespace mixpol::cpu::MIXPOL_ISA
