// Every schema-to-kernel binding; the schemas are declared in Python (mixpol_kernels/ops/*/autograd.py).
#include <torch/csrc/stable/library.h>

#include <string_view>

#include "cpu/attention.h"
#include "cpu/dot_attention.h"
#include "cpu/interleave.h"
#include "cpu/polarity_embedding.h"
#include "cpu/polarity_fusion.h"
#include "cpu/unit_statistics.h"

namespace {

int64_t cpu_isa() { return static_cast<int64_t>(mixpol::cpu::isa()); }

}  // namespace

// The signatures that this file was compiled for, one a line: the loader compares them with its own, since a
// kernel that is called by another signature reads garbage.
extern "C" __attribute__((visibility("default"))) const char* mixpol_signatures() {
#define MIXPOL_SCHEMA(signature) signature "\n"
    return
#include "schemas.inc"
        ;
#undef MIXPOL_SCHEMA
}

STABLE_TORCH_LIBRARY_IMPL(mixpol, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }

namespace {

using mixpol::cpu::Tensor;

// The name of an op's argument, from its signature.
std::string argument(std::string_view op, int64_t position) {
    const std::string_view all = mixpol_signatures();
    const std::string start = std::string("\n").append(op) + "(";
    size_t at = all.find(start);
    if (at == std::string_view::npos) return "an argument";
    std::string_view rest = all.substr(at + start.size());
    while (position-- > 0) rest.remove_prefix(rest.find(", ") + 2);
    rest = rest.substr(0, rest.find_first_of(",)"));
    return std::string(rest.substr(rest.rfind(' ') + 1));
}

void check(const Tensor& tensor, const char* op, int64_t position, int64_t entry = -1) {
    const std::string reason = mixpol::cpu::unreadable(tensor);
    if (reason.empty()) return;
    const std::string name = argument(op, position);
    mixpol::cpu::fail(mixpol::cpu::Name(name.c_str(), entry), " ", reason);
}

void check(const std::vector<Tensor>& tensors, const char* op, int64_t position) {
    for (size_t i = 0; i < tensors.size(); i++) check(tensors[i], op, position, static_cast<int64_t>(i));
}

template <class T>
    requires std::is_arithmetic_v<T>
void check(const T&, const char*, int64_t) {}

template <class T>
void check(const std::optional<T>& value, const char* op, int64_t position) {
    if (value) check(*value, op, position);
}

// An op behind the check that every tensor among its arguments can be read.
template <const char* op, auto function>
struct Checked;

template <const char* op, class Result, class... Arguments, Result (*function)(Arguments...)>
struct Checked<op, function> {
    static Result call(Arguments... arguments) {
        int64_t position = 0;
        (check(arguments, op, position++), ...);
        return function(std::move(arguments)...);
    }
};

}  // namespace

#define MIXPOL_BIND(name)                                                   \
    {                                                                       \
        static constexpr char op[] = #name;                                 \
        m.impl(#name, TORCH_BOX((&Checked<op, &mixpol::cpu::name>::call))); \
    }

STABLE_TORCH_LIBRARY_IMPL(mixpol, CPU, m) {
    MIXPOL_BIND(interleave)
    MIXPOL_BIND(polarity_embedding_fwd)
    MIXPOL_BIND(table_grad_dense)
    MIXPOL_BIND(table_grad_sparse)
    MIXPOL_BIND(polarity_fusion_fwd)
    MIXPOL_BIND(polarity_fusion_bwd)
    MIXPOL_BIND(target_attention_fwd)
    MIXPOL_BIND(target_attention_bwd)
    MIXPOL_BIND(unit_statistics_fwd)
    MIXPOL_BIND(unit_statistics_bwd)
    MIXPOL_BIND(dice_attention_fwd)
    MIXPOL_BIND(dice_attention_bwd)
    MIXPOL_BIND(mixed_polarity_attention_fwd)
    MIXPOL_BIND(mixed_polarity_attention_bwd)
    MIXPOL_BIND(dot_attention_fwd)
    MIXPOL_BIND(dot_attention_bwd)
    MIXPOL_BIND(dot_attention_infer)
    MIXPOL_BIND(dot_attention_projected_fwd)
    MIXPOL_BIND(dot_attention_projected_bwd)
}
