// A few rows times a projection that is read where it lies, packed for nobody: what a single request needs.
// Each number is one chain a lane and one order of adding the lanes, whatever is computed beside it.
#include "cpu/gemm.h"
#include "cpu/kernels/level.h"

namespace mixpol::cpu::MIXPOL_ISA {

// By two rows and four outputs.
void project_rows(const float* rows, int64_t count, int64_t ld, const float* weight, int outputs, int width,
                  float* out, int64_t ldo) {
    const int whole = width / W * W;
    auto tile = [&]<int R>(int64_t n) __attribute__((always_inline)) {
        const float* x = rows + n * ld;
        for (int j = 0; j < outputs; j += 4) {
            const float* w[4];
            for (int t = 0; t < 4; t++) w[t] = weight + (j + t < outputs ? j + t : j) * int64_t{width};
            vec acc[R][4] = {};
            for (int c = 0; c < whole; c += W)
#pragma GCC unroll 4
                for (int t = 0; t < 4; t++) {
                    const vec column = load(w[t] + c);
#pragma GCC unroll 2
                    for (int r = 0; r < R; r++) acc[r][t] = fma(load(x + r * ld + c), column, acc[r][t]);
                }
#pragma GCC unroll 2
            for (int r = 0; r < R; r++) {
                quad four = MIXPOL_ISA::sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
                for (int t = 0; t < 4 && j + t < outputs; t++) {
                    float rest = 0;
                    for (int c = whole; c < width; c++) rest += x[r * ld + c] * w[t][c];
                    out[(n + r) * ldo + j + t] = four[t] + rest;
                }
            }
        }
    };
    int64_t n = 0;
    for (; n + 2 <= count; n += 2) tile.template operator()<2>(n);
    for (; n < count; n++) tile.template operator()<1>(n);
}

void absorb_rows(const float* rows, int64_t count, int64_t ld, const float* weight, int depth, int width,
                 float* out, int64_t ldo) {
    for (int64_t n = 0; n < count; n++) {
        const float* x = rows + n * ld;
        float* to = out + n * ldo;
        int c = 0;
        for (; c + 4 * W <= width; c += 4 * W) {
            vec acc[4] = {};
            for (int k = 0; k < depth; k++) {
                const vec factor = broadcast(x[k]);
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++)
                    acc[v] = fma(factor, load(weight + k * int64_t{width} + c + v * W), acc[v]);
            }
            for (int v = 0; v < 4; v++) store(to + c + v * W, acc[v]);
        }
        for (; c + W <= width; c += W) {
            vec acc{};
            for (int k = 0; k < depth; k++)
                acc = fma(broadcast(x[k]), load(weight + k * int64_t{width} + c), acc);
            store(to + c, acc);
        }
        for (; c < width; c++) {
            float total = 0;
            for (int k = 0; k < depth; k++) total += x[k] * weight[k * int64_t{width} + c];
            to[c] = total;
        }
    }
}

}  // namespace mixpol::cpu::MIXPOL_ISA
