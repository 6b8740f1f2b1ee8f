// What launchers (csrc/cuda/*.cu, with torch) and kernels (csrc/cuda/*.cuh, without) tell each other. All
// pointers are to device memory.
#pragma once

#include <initializer_list>

#include "cuda/portable.cuh"
#include "math/activations.h"

namespace mixpol::cuda {

constexpr int MAX_HIDDEN = 3;     // hidden layers of an activation unit
constexpr int CHUNK = 32;         // tokens that a block works on together: one a lane where they are weighed
constexpr int THREADS = 128;      // of the blocks that do
constexpr int BLOCKS_PER_SM = 4;  // what their registers leave room for

// Widths in shared memory and in packed parameters: whole float4.
__host__ __device__ constexpr int padded(int n) { return (n + 3) & ~3; }
// The same as the distance of rows that several threads read at once: no multiple of eight, for the banks.
__host__ __device__ constexpr int row_pitch(int n) { return padded(n) | 4; }

// Which tokens belong to which user. Positions are token indices: n in a jagged, b * length + l in a padded
// history.
struct History {
    int64_t users = 0;
    int64_t length = 0;                // L, padded only
    int64_t tokens = 0;                // pads included
    const int64_t* offsets = nullptr;  // jagged
    const int64_t* lengths = nullptr;  // padded on the right
    const uint8_t* mask = nullptr;     // padded anywhere; none of the three: every position is kept

    __host__ __device__ bool has_pads() const { return lengths || mask; }
    __device__ int64_t begin(int64_t user) const { return offsets ? offsets[user] : user * length; }
    // Behind the last position that may be kept.
    __device__ int64_t end(int64_t user) const {
        return offsets ? offsets[user + 1] : user * length + (lengths ? lengths[user] : length);
    }
    // Whether a position of a user is kept.
    __device__ bool keeps_of(int64_t user, int64_t position) const {
        if (mask) return mask[position] != 0;
        return !lengths || position - user * length < lengths[user];
    }
    // The same where the user is not known.
    __device__ bool keeps(int64_t position) const {
        if (mask) return mask[position] != 0;
        return !lengths || position % length < lengths[position / length];
    }
};

enum class IdType : int { u8 = 0, i8 = 1, i16 = 2, i32 = 3, i64 = 4 };

// Integer ids by position, as they were given.
struct Ids {
    const void* data = nullptr;
    IdType type = IdType::i64;

    __device__ int64_t operator[](int64_t i) const {
        switch (type) {
            case IdType::u8:
                return static_cast<const uint8_t*>(data)[i];
            case IdType::i8:
                return static_cast<const int8_t*>(data)[i];
            case IdType::i16:
                return static_cast<const int16_t*>(data)[i];
            case IdType::i32:
                return static_cast<const int32_t*>(data)[i];
            default:
                return static_cast<const int64_t*>(data)[i];
        }
    }
};

// Rows of floats: of a [B, L, D] or [N, D] tensor, or of a table.
struct Rows {
    const float* base = nullptr;
    int64_t user_stride = 0;  // floats; 0 when jagged
    int64_t row_stride = 0;   // floats
    bool vectors = false;     // every row begins on 16 bytes, and D is a multiple of 4

    // Where the row of a position begins, in floats.
    __device__ int64_t offset(const History& history, int64_t user, int64_t position) const {
        if (history.offsets) return position * row_stride;
        return user * user_stride + (position - user * history.length) * row_stride;
    }
};

// Whether rows at these strides can be read as whole float4.
__host__ inline bool whole_vectors(const float* base, int64_t width, std::initializer_list<int64_t> strides) {
    bool whole = reinterpret_cast<uintptr_t>(base) % sizeof(float4) == 0 && width % 4 == 0;
    for (const int64_t stride : strides) whole = whole && stride % 4 == 0;
    return whole;
}

struct ActivationUnit {
    Activation activation = Activation::relu;
    Normalize normalize = Normalize::none;
    int width = 0;  // D
    int layers = 0;
    int units[MAX_HIDDEN] = {};                // H_i
    const float* weight[MAX_HIDDEN + 1] = {};  // contiguous [H_i, inputs], then the output layer [1, H_last]
    const float* bias[MAX_HIDDEN + 1] = {};
    const float* slope[MAX_HIDDEN] = {};  // [parameter_rows, H_i]
};

enum class Fusion : int { none = 0, bias = 1, tapf = 2 };

struct PolarityFusion {
    Fusion kind = Fusion::none;
    bool full_gate = false;  // gate from [x ; t ; x * t] instead of x * t alone
    int width = 0;
    Ids polarity, extra;                   // by position
    int64_t rows = 0, extra_rows = 0;      // P, and R or 0
    const float* table = nullptr;          // contiguous [P, D]
    const float* extra_table = nullptr;    // contiguous [R, D], or null
    const float* sign = nullptr;           // [P]
    const float* gate_weight = nullptr;    // W_g [D, D], or blocks x, t, x * t [D, 3 D]
    const float* gate_bias = nullptr;      // b_g [D]
    const float* target_weight = nullptr;  // W_t [D, D]
};

// Parameters in the layout that the kernels read: [inputs padded][units padded], zeros in the padding.
struct PackedUnit {
    float *token, *product, *target;  // Wk - Wd, Wp, Wq + Wd, each [Dp][H1p]
    float* weight[MAX_HIDDEN];        // layers 1 ...: [H_(i-1) p][H_i p]
    float* bias[MAX_HIDDEN];          // [H_i p]
    float* slope[MAX_HIDDEN];         // [parameter_rows][H_i p]
    float* output;                    // w_o [H_last p]
};

struct PackedFusion {
    float* gate;                        // the block of W_g that meets x * t [Dp][Dp]
    float *gate_token, *gate_constant;  // the blocks that meet x and t: null unless full_gate
    float* target;                      // W_t [Dp][Dp]
    float* bias;                        // b_g [Dp]
};

// Arguments common to kernels over histories.
struct Pass {
    History history;
    Rows tokens;
    Ids items;  // by position: selects the row of `tokens`, a table; data is null where tokens are an input
    PolarityFusion fusion;
    ActivationUnit unit;
    int width = 0;                  // D
    int candidates = 1;             // M
    const float* target = nullptr;  // contiguous [B * M, D]
    PackedUnit packed_unit = {};
    PackedFusion packed_fusion = {};
};

struct AttentionForward : Pass {
    float* pooled = nullptr;     // [B * M, D]
    float* attention = nullptr;  // weights [tokens, M] or null
    uint8_t* bits = nullptr;     // [tokens, M, ceil(H / 8)] or null
};

struct FusionForward : Pass {
    float* fused = nullptr;  // [tokens, D]
};

}  // namespace mixpol::cuda
