// A running softmax over chunks of scores.
#pragma once

#include <cmath>

#include "cpu/kernels/tokens.h"

namespace mixpol::cpu::MIXPOL_ISA {

// A chunk's scores to attention weights under a running softmax; rescales what was pooled so far.
struct Softmax {
    float highest = -INFINITY;
    double total = 0;

    // `pooled`: so many floats.
    void weigh(float* weights, const float* scores, int n, float* pooled, int floats) {
        float now = -INFINITY;
        for (int i = 0; i < n; i++) now = scores[i] > now ? scores[i] : now;
        if (raises(highest, now)) {
            float factor = exponential(highest - now);
            total *= factor;
            for (int c = 0; c < floats; c += W) store(pooled + c, load(pooled + c) * broadcast(factor));
            highest = now;
        }
        vec sums{};
        for (int i = 0; i < n; i += W) {
            const vec weight = exp(load(scores + i) - broadcast(highest));
            store(weights + i, weight);
            sums += first_lanes(weight, n - i);
        }
        total += sum(sums);
    }

    // The scores that were written on the way, to weights.
    void finish(float* attention, Cursor cursor, int64_t stride) const {
        float weights[CHUNK] = {};
        int64_t positions[CHUNK];
        const vec sum = broadcast(static_cast<float>(total));
        while (int n = cursor.fill(positions)) {
            for (int i = 0; i < n; i++) weights[i] = attention[positions[i] * stride];
            for (int i = 0; i < CHUNK; i += W)
                store(weights + i, exp(load(weights + i) - broadcast(highest)) / sum);
            for (int i = 0; i < n; i++) attention[positions[i] * stride] = weights[i];
        }
    }

    static float exponential(float x) {
        vec y = exp(broadcast(x));
        return y[0];
    }
};

}  // namespace mixpol::cpu::MIXPOL_ISA
