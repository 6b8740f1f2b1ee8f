// What every launcher does: check tensors, read layouts, cut the users into blocks, run the blocks on
// threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace mixpol::cpu {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
// A list that may be empty: an exported model (AOTInductor) loses empty lists on the way, but not None.
using OptionalTensors = std::optional<std::vector<Tensor>>;

inline std::vector<Tensor> list_of(const OptionalTensors& tensors) {
    return tensors ? *tensors : std::vector<Tensor>{};
}

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::runtime_error(text.str());
}

// The name of an argument, or of an entry of a list.
struct Name {
    const char* text;
    int64_t entry = -1;
    Name(const char* text, int64_t entry = -1) : text(text), entry(entry) {}
};
inline std::ostream& operator<<(std::ostream& out, const Name& name) {
    out << name.text;
    return name.entry < 0 ? out : out << "[" << name.entry << "]";
}

// "[3, 4]".
std::string shape_text(const Tensor& tensor);

// Why a tensor's values cannot be read; empty if they can: it is there, on the CPU, and its storage holds all
// of them (that of sharded parameters is released between steps). csrc/register.cpp asks it of every
// argument.
std::string unreadable(const Tensor& tensor);

// A size as the kernels count it: they multiply a few of them as int.
constexpr int64_t MAX_SIZE = 1 << 26, MAX_USERS = 1 << 28;
int checked_size(int64_t size, const Name& name, const char* what);

// memset and memcpy that take null for nothing: torch has it for empty tensors.
inline void clear(void* to, int64_t bytes) {
    if (bytes > 0) std::memset(to, 0, bytes);
}
inline void copy(void* to, const void* from, int64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
}

// What a tensor stores; float32, which the checks below then ask for, if it is none of the three.
Element element_of(const Tensor& tensor);

// A contiguous tensor in float32: itself if it is.
Tensor widened(const Tensor& tensor, Element element);

// A contiguous float32 tensor rounded to `element`: itself if that is float32.
Tensor narrowed(const Tensor& floats, Element element);

// A tensor of `element` on the CPU with the given sizes (-1: any), in float32: itself, or a contiguous copy.
Tensor floats(const Tensor& tensor, const Name& name, std::initializer_list<int64_t> sizes,
              Element element = Element::f32);

// The same, for rows that may lie at any stride: only the last dimension is made contiguous, and they stay
// what they are.
Tensor float_rows(const Tensor& tensor, const Name& name, int64_t width, Element element = Element::f32);

// The tensor itself if it is contiguous: the copying op goes through the dispatcher by name, which costs more
// than a short history's attention.
Tensor as_contiguous(const Tensor& tensor);

// A contiguous, uninitialised CPU tensor.
Tensor new_tensor(const std::vector<int64_t>& sizes, torch::headeronly::ScalarType type);

// The same of what the kernels write; large ones come as huge pages.
Tensor new_floats(const std::vector<int64_t>& sizes);
Tensor new_elements(const std::vector<int64_t>& sizes, Element element);

struct FreeDeleter {
    void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float, FreeDeleter>;
Buffer allocate(int64_t floats);

// A history's layout with its values checked, and the tensors that keep it alive.
struct Layout {
    History history;
    std::vector<int64_t> shape;   // of the ids: [N] or [B, L]
    std::vector<int64_t> counts;  // kept tokens a user
    std::vector<Tensor> alive;
    bool any_empty() const;  // a user without a token
    bool all_empty() const;
};
Layout read_layout(int64_t users, const std::vector<int64_t>& token_shape, const OptionalTensor& offsets,
                   const OptionalTensor& lengths, const OptionalTensor& mask);

// Contract 5: whatever an empty history's target holds, NaN included, reaches no sum. `target` is float32 and
// contiguous, with `row_floats` for each user: itself, or a copy with zeros for those users.
Tensor without_empty(const Tensor& target, const Layout& layout, int64_t row_floats);

// The same of what was computed for them: zeros in rows of `row_bytes`, a user each.
void clear_empty(void* rows, const Layout& layout, int64_t row_bytes);

std::vector<int64_t> sizes_of(const Tensor& tensor);

// Ids of kept positions as int64, checked against 0 ... rows - 1. Those of pads are not read.
class Ids {
 public:
    Ids() = default;
    Ids(const Tensor& ids, const Name& name, int64_t rows, const Layout& layout);
    const int64_t* data() const { return data_; }

 private:
    const int64_t* data_ = nullptr;
    std::vector<Tensor> alive_;
};

// Contiguous ranges of users of about equal cost, fixed by the inputs alone: their sums do not depend on
// threads.
std::vector<int64_t> cut_blocks(const Layout& layout, int64_t candidates, int64_t max_blocks);

// The same of targets, row user * candidates + candidate: the threads share a single user's.
std::vector<int64_t> cut_targets(const Layout& layout, int64_t candidates, int64_t max_blocks);

// Runs work(block, scratch) for each of `blocks` blocks; free threads take the next one.
template <class Work>
void run_blocks(int64_t blocks, int64_t scratch_floats, const Work& work) {
    int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), blocks);
    if (threads < 1) return;
    Buffer scratch = allocate(scratch_floats * threads);
    std::atomic<int64_t> next{0};
    auto worker = [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; t++)
            for (int64_t block; (block = next.fetch_add(1)) < blocks;)
                work(block, scratch.get() + t * scratch_floats);
    };
    if (threads == 1) {
        worker(0, 1);
    } else {
        torch::stable::parallel_for(0, threads, 1, worker);
    }
}

// Adds the blocks' sums into those of block 0, in an order that their number fixes.
void add_blocks(float* sums, int64_t blocks, int64_t floats);

// An activation unit and a polarity fusion read from tensors, with the tensors that keep them alive.
struct Unit {
    ActivationUnit args;
    std::vector<Tensor> alive;
    std::vector<Tensor> parameters;  // weights, biases, slopes as given
    int64_t given = 0;               // weights, the output layer's included
    std::vector<Tensor> new_gradients(UnitGradients& out) const;
};
Unit read_unit(int64_t width, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
               const std::vector<Tensor>& slopes, int64_t activation, int64_t normalize, bool output = true,
               Element element = Element::f32);

// Dropout of its hidden units: `seed` [1] int64 is read where `p` is not 0.
void read_dropout(ActivationUnit& unit, double p, const OptionalTensor& seed);

struct FusionInputs {
    PolarityFusion args;
    Ids polarity, extra;
    bool has_extra = false;
    std::vector<Tensor> alive;
    Tensor new_gradients(FusionGradients& out, std::vector<Tensor>& gate, Tensor& extra_table) const;
};
FusionInputs read_fusion(int64_t width, const OptionalTensor& polarity, const OptionalTensor& table,
                         const Tensor& sign, const std::vector<Tensor>& gate, const OptionalTensor& extra_ids,
                         const OptionalTensor& extra_table, const Layout& layout,
                         Element element = Element::f32);

// The packed parameters of a pass, in one buffer.
struct Packed {
    Buffer memory;
};
Packed pack(Pass& pass, bool with_unit, bool backward);

// How many blocks a backward may have at most, since each has its own sums: a very large table means few.
int64_t backward_blocks(int64_t floats);
int64_t backward_blocks(const Pass& pass, bool with_unit);

// The sums of each block of a backward, in one buffer.
struct BlockSums {
    int64_t blocks, floats;
    Buffer memory;
    UnitSums unit(const Pass& pass, int64_t block) const;
    FusionSums fusion(const Pass& pass, int64_t block) const;
    void clear(int64_t block) const;
};
BlockSums new_sums(const Pass& pass, bool with_unit, int64_t blocks);

}  // namespace mixpol::cpu
