// Every schema-to-kernel binding of the CUDA library, which is loaded beside _C.so where torch has CUDA.
#include "cuda/attention.h"
#include "cuda/interleave.h"
#include "cuda/polarity_embedding.h"
#include "cuda/polarity_fusion.h"

// The signatures that this file was compiled for: see csrc/register.cpp.
extern "C" __attribute__((visibility("default"))) const char* mixpol_signatures() {
#define MIXPOL_SCHEMA(signature) signature "\n"
    return
#include "schemas.inc"
        ;
#undef MIXPOL_SCHEMA
}

STABLE_TORCH_LIBRARY_IMPL(mixpol, CUDA, m) {
    m.impl("interleave", TORCH_BOX(&mixpol::cuda::interleave));
    m.impl("polarity_embedding_fwd", TORCH_BOX(&mixpol::cuda::polarity_embedding_fwd));
    m.impl("table_grad_dense", TORCH_BOX(&mixpol::cuda::table_grad_dense));
    m.impl("table_grad_sparse", TORCH_BOX(&mixpol::cuda::table_grad_sparse));
    m.impl("polarity_fusion_fwd", TORCH_BOX(&mixpol::cuda::polarity_fusion_fwd));
    m.impl("target_attention_fwd", TORCH_BOX(&mixpol::cuda::target_attention_fwd));
    m.impl("mixed_polarity_attention_fwd", TORCH_BOX(&mixpol::cuda::mixed_polarity_attention_fwd));
}
