// What the kernel files of one instruction set level define for each other.
#pragma once

#include "cpu/args.h"

namespace mixpol::cpu::MIXPOL_ISA {

void pack_unit(const ActivationUnit&, bool scaled, bool halves, PackedUnit&);
void pack_fusion(const PolarityFusion&, bool backward, PackedFusion&);
int64_t attention_scratch_floats(const Pass&, bool backward);
int64_t fusion_scratch_floats(const Pass&, bool backward);
void attention_forward(const AttentionForward&, int64_t target_begin, int64_t target_end, float* scratch);
void attention_backward(const AttentionBackward&, int64_t user_begin, int64_t user_end, float* scratch,
                        const UnitSums&, const FusionSums&);
void normalised_sums(const AttentionBackward&, int64_t user_begin, int64_t user_end, float* scratch,
                     float* sums);
int64_t statistics_scratch_floats(const Pass&);
void statistics_forward(const StatisticsPass&, int64_t user_begin, int64_t user_end, float* scratch,
                        Moments&);
void statistics_backward(const StatisticsBackward&, int64_t user_begin, int64_t user_end, float* scratch,
                         const UnitSums&);
void fusion_forward(const FusionForward&, int64_t user_begin, int64_t user_end, float* scratch);
void fusion_backward(const FusionBackward&, int64_t user_begin, int64_t user_end, float* scratch,
                     const FusionSums&);
void unfold_unit(const ActivationUnit&, const UnitSums&, bool scaled, const UnitGradients&);
void unfold_fusion(const PolarityFusion&, const FusionSums&, const FusionGradients&);
int64_t dot_scratch_floats(const DotPass&, bool backward);
void dot_forward(const DotForward&, int64_t part_begin, int64_t part_end, float* scratch);
void dot_backward(const DotBackward&, int64_t user_begin, int64_t user_end, float* scratch);
int64_t dot_projected_scratch_floats(const DotProjected&, bool backward);
void dot_projected_forward(const DotProjectedForward&, int64_t head_begin, int64_t head_end, float* scratch);
void dot_projected_backward(const DotProjectedBackward&, int64_t user_begin, int64_t user_end, float* scratch,
                            float* sums);
void project_rows(const float* rows, int64_t count, int64_t ld, const float* weight, int outputs, int width,
                  float* out, int64_t ldo);
void absorb_rows(const float* rows, int64_t count, int64_t ld, const float* weight, int depth, int width,
                 float* out, int64_t ldo);
void add(float* to, const float* from, int64_t floats);
void gather_sum(float* out, const float* a, const float* b, int width);
void sum_rows(float* out, const float* const* rows, int64_t count, int width);
void widen(float* to, const void* from, int64_t count, Element from_element);
void narrow(void* to, const float* from, int64_t count, Element to_element);

}  // namespace mixpol::cpu::MIXPOL_ISA
