// Runs one op's CUDA kernels on the CPU: `harness REQUEST RESULT`. Both files are lists of entries: the
// length of a name as int64, the name, the number of bytes as int64, the bytes. It stands in for the
// launchers (csrc/cuda/*.cu): buffers have exactly the sizes that those allocate.
// tests/cuda_host/emulation.py writes the requests.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/attention.cuh"
#include "cuda/checks.cuh"
#include "cuda/interleave.cuh"
#include "cuda/polarity_embedding.cuh"
#include "cuda/polarity_fusion.cuh"
#include "cuda/table_grad.cuh"

namespace mixpol::cuda {
namespace {

// One allocation of exactly this size, aligned to 16 bytes, so that AddressSanitizer sees every overrun.
struct Buffer {
    std::unique_ptr<char[]> data;
    size_t bytes = 0;

    explicit Buffer(size_t bytes = 0) : data(new char[bytes]), bytes(bytes) {
        std::memset(data.get(), 0xff, bytes);  // NaN: what a kernel leaves out shows
    }
    template <class T>
    T* as() {
        return reinterpret_cast<T*>(data.get());
    }
};

class Entries {
 public:
    explicit Entries(const char* path) {
        std::ifstream file(path, std::ios::binary);
        for (int64_t size; file.read(reinterpret_cast<char*>(&size), sizeof size);) {
            std::string name(size, ' ');
            file.read(name.data(), size);
            file.read(reinterpret_cast<char*>(&size), sizeof size);
            Buffer buffer(size);
            file.read(buffer.data.get(), size);
            entries_.emplace(name, std::move(buffer));
        }
        if (!file.eof() || entries_.empty()) throw std::runtime_error("the request cannot be read");
    }

    bool has(const std::string& name) const { return entries_.count(name) > 0; }

    Buffer& at(const std::string& name) {
        if (!has(name)) throw std::runtime_error("the request lacks " + name);
        return entries_.at(name);
    }

    int64_t number(const std::string& name) { return *at(name).as<int64_t>(); }
    int64_t number(const std::string& name, int64_t otherwise) {
        return has(name) ? number(name) : otherwise;
    }

    // Null if there is none.
    template <class T>
    const T* tensor(const std::string& name) {
        return has(name) ? at(name).as<T>() : nullptr;
    }

    Ids ids(const std::string& name) {
        if (!has(name)) return {};
        return {at(name).data.get(), static_cast<IdType>(number(name + ".type"))};
    }

    Rows rows(const std::string& name, int64_t width) {
        Rows rows;
        rows.base = tensor<float>(name) + number(name + ".lead");  // which may shift the alignment
        rows.row_stride = number(name + ".row_stride");
        rows.user_stride = number(name + ".user_stride");
        rows.vectors = whole_vectors(rows.base, width, {rows.row_stride, rows.user_stride});
        return rows;
    }

    History history() {
        History h;
        h.users = number("users");
        h.length = number("length", 0);
        h.tokens = number("positions");
        h.offsets = tensor<int64_t>("offsets");
        h.lengths = tensor<int64_t>("lengths");
        h.mask = tensor<uint8_t>("mask");
        return h;
    }

 private:
    std::map<std::string, Buffer> entries_;
};

class Results {
 public:
    explicit Results(const char* path) : file_(path, std::ios::binary) {}

    void add(const std::string& name, const void* data, int64_t bytes) {
        const int64_t size = static_cast<int64_t>(name.size());
        file_.write(reinterpret_cast<const char*>(&size), sizeof size);
        file_.write(name.data(), size);
        file_.write(reinterpret_cast<const char*>(&bytes), sizeof bytes);
        file_.write(static_cast<const char*>(data), bytes);
    }
    void add(const std::string& name, const Buffer& buffer) {
        add(name, buffer.data.get(), static_cast<int64_t>(buffer.bytes));
    }

 private:
    std::ofstream file_;
};

size_t floats(int64_t count) { return static_cast<size_t>(count) * sizeof(float); }

void read_fusion(Entries& in, Pass& pass, Checks& checks) {
    PolarityFusion& fusion = pass.fusion;
    fusion.width = pass.width;
    if (!in.has("polarity_table")) return;
    fusion.kind = in.has("gate[0]") ? Fusion::tapf : Fusion::bias;
    fusion.full_gate = in.number("full_gate", 0) != 0;
    fusion.polarity = in.ids("polarity");
    fusion.rows = in.number("polarity_rows");
    fusion.table = in.tensor<float>("polarity_table");
    fusion.sign = in.tensor<float>("sign");
    checks.add(fusion.polarity, fusion.rows, Argument::polarity);
    if (in.has("extra_table")) {
        fusion.extra = in.ids("extra_ids");
        fusion.extra_rows = in.number("extra_rows");
        fusion.extra_table = in.tensor<float>("extra_table");
        checks.add(fusion.extra, fusion.extra_rows, Argument::extra_ids);
    }
    fusion.gate_weight = in.tensor<float>("gate[0]");
    fusion.gate_bias = in.tensor<float>("gate[1]");
    fusion.target_weight = in.tensor<float>("gate[2]");
}

void read_unit(Entries& in, Pass& pass) {
    ActivationUnit& unit = pass.unit;
    unit.activation = static_cast<Activation>(in.number("activation"));
    unit.normalize = static_cast<Normalize>(in.number("normalize"));
    unit.width = pass.width;
    unit.layers = static_cast<int>(in.number("layers"));
    for (int i = 0; i <= unit.layers; i++) {
        const std::string index = "[" + std::to_string(i) + "]";
        unit.weight[i] = in.tensor<float>("weights" + index);
        unit.bias[i] = in.tensor<float>("biases" + index);
        if (i == unit.layers) break;
        unit.units[i] = static_cast<int>(in.number("units" + index));
        unit.slope[i] = in.tensor<float>("slopes" + index);
    }
}

Buffer pack(Pass& pass) {
    Buffer memory(floats(packed_floats(pass)));
    pack(pass, memory.as<float>(), nullptr);
    return memory;
}

void attention(Entries& in, Results& out) {
    AttentionForward a;
    Checks checks;
    checks.history = a.history = in.history();
    a.width = static_cast<int>(in.number("width"));
    a.candidates = static_cast<int>(in.number("candidates"));
    a.target = in.tensor<float>("target");
    if (in.has("item_ids")) {
        a.items = in.ids("item_ids");
        a.tokens = in.rows("item_table", a.width);
        checks.add(a.items, in.number("items"), Argument::item_ids);
    } else {
        a.tokens = in.rows("history", a.width);
    }
    read_fusion(in, a, checks);
    read_unit(in, a);
    launch_checks(checks, nullptr);
    const Buffer packed = pack(a);
    const int64_t weights = a.history.tokens * a.candidates, bytes = (a.unit.units[0] + 7) / 8;
    Buffer pooled(floats(a.history.users * a.candidates * a.width));
    Buffer attention(in.number("save_attention") ? floats(weights) : 0);
    Buffer bits(in.number("save_bits") ? weights * bytes : 0);
    a.pooled = pooled.as<float>();
    a.attention = in.number("save_attention") ? attention.as<float>() : nullptr;
    a.bits = in.number("save_bits") ? bits.as<uint8_t>() : nullptr;
    const Tables tables = plan_tables(a, in.number("shared_limit"));
    if (!tables.unit_columns) throw std::runtime_error("the tables do not fit into shared memory");
    launch_attention(a, tables, nullptr);
    const int64_t resident = tables.resident;
    out.add("pooled", pooled);
    out.add("attention", attention);
    out.add("bits", bits);
    out.add("resident", &resident, sizeof resident);
}

void fusion(Entries& in, Results& out) {
    FusionForward a;
    Checks checks;
    checks.history = a.history = in.history();
    a.width = static_cast<int>(in.number("width"));
    a.target = in.tensor<float>("target");
    a.tokens = in.rows("tokens", a.width);
    read_fusion(in, a, checks);
    launch_checks(checks, nullptr);
    const Buffer packed = pack(a);
    Buffer fused(floats(a.history.tokens * a.width));
    a.fused = fused.as<float>();
    const Tables tables = plan_tables(a, in.number("shared_limit"));
    if (a.fusion.kind == Fusion::tapf && !tables.gate_columns)
        throw std::runtime_error("the table does not fit into shared memory");
    launch_polarity_fusion(a, tables, nullptr);
    out.add("fused", fused);
}

void embedding(Entries& in, Results& out) {
    EmbeddingForward a{};
    Checks checks;
    checks.history = a.history = in.history();
    a.width = static_cast<int>(in.number("width"));
    a.items = in.ids("item_ids"), a.polarity = in.ids("polarity"), a.extra = in.ids("extra_ids");
    const Rows items = in.rows("item_table", a.width), polarities = in.rows("polarity_table", a.width);
    a.item_table = items.base, a.item_stride = items.row_stride;
    a.polarity_table = polarities.base, a.polarity_stride = polarities.row_stride;
    a.vectors = items.vectors && polarities.vectors;
    checks.add(a.items, in.number("items"), Argument::item_ids);
    checks.add(a.polarity, in.number("polarity_rows"), Argument::polarity);
    if (in.has("extra_table")) {
        const Rows extras = in.rows("extra_table", a.width);
        a.extra_table = extras.base, a.extra_stride = extras.row_stride;
        a.vectors = a.vectors && extras.vectors;
        checks.add(a.extra, in.number("extra_rows"), Argument::extra_ids);
    }
    launch_checks(checks, nullptr);
    Buffer tokens(floats(a.history.tokens * a.width));
    a.tokens = tokens.as<float>();
    launch_polarity_embedding(a, nullptr);
    out.add("tokens", tokens);
}

void table_grad(Entries& in, Results& out) {
    TableGrad a{};
    Checks checks;
    checks.history = a.history = in.history();
    a.width = static_cast<int>(in.number("width"));
    a.rows = in.number("items");
    a.grads = in.rows("grad_tokens", a.width);
    const Ids ids = in.ids("item_ids");
    checks.add(ids, a.rows, Argument::ids);
    launch_checks(checks, nullptr);
    const int64_t n = a.history.tokens;
    const size_t bytes = static_cast<size_t>(n) * sizeof(int64_t);
    Buffer keys(bytes), sorted(bytes), order(bytes), marks(bytes);
    launch_sort_keys(a.history, ids, a.rows, keys.as<int64_t>(), nullptr);
    int64_t* places = order.as<int64_t>();
    std::iota(places, places + n, int64_t{0});
    std::stable_sort(places, places + n,
                     [&](int64_t i, int64_t j) { return keys.as<int64_t>()[i] < keys.as<int64_t>()[j]; });
    for (int64_t i = 0; i < n; i++) sorted.as<int64_t>()[i] = keys.as<int64_t>()[places[i]];
    a.ids = sorted.as<int64_t>(), a.order = places;
    Buffer shares(floats(2 * grad_runs(n) * a.width));
    a.shares = shares.as<float>();
    int64_t rows = a.rows;
    if (in.number("sparse")) {
        launch_mark_segments(a.ids, n, a.rows, marks.as<int64_t>(), nullptr);
        std::partial_sum(marks.as<int64_t>(), marks.as<int64_t>() + n, marks.as<int64_t>());
        rows = n ? marks.as<int64_t>()[n - 1] : 0;
        a.segments = marks.as<int64_t>();
    }
    Buffer grad(floats(rows * a.width)), unique(in.number("sparse") ? rows * sizeof(int64_t) : 0);
    if (!in.number("sparse")) std::memset(grad.data.get(), 0, grad.bytes);
    a.out = grad.as<float>();
    a.unique = in.number("sparse") ? unique.as<int64_t>() : nullptr;
    launch_table_grad(a, nullptr);
    out.add("grad", grad);
    out.add("unique", unique);
}

template <class T>
void interleave(Entries& in, Results& out) {
    Interleave<T> a{};
    a.users = in.number("users");
    a.positive = {in.tensor<T>("positive_times"), in.tensor<int64_t>("positive_offsets"),
                  in.number("positives")};
    a.negative = {in.tensor<T>("negative_times"), in.tensor<int64_t>("negative_offsets"),
                  in.number("negatives")};
    a.rule = {in.number("budget", std::numeric_limits<int64_t>::max()), in.number("n_negative", 0),
              in.has("n_negative")};
    Buffer counts((a.users + 1) * sizeof(int64_t)), offsets((a.users + 1) * sizeof(int64_t));
    launch_count_events(a, counts.as<int64_t>(), nullptr);
    int64_t* to = offsets.as<int64_t>();
    std::partial_sum(counts.as<int64_t>(), counts.as<int64_t>() + a.users + 1, to);
    Buffer source(to[a.users] * sizeof(int64_t)), polarity(to[a.users]);
    a.offsets = to;
    a.source = source.as<int64_t>();
    a.polarity = polarity.as<uint8_t>();
    launch_merge_events(a, nullptr);
    out.add("source", source);
    out.add("polarity", polarity);
    out.add("offsets", offsets);
}

void run(Entries& in, Results& out) {
    Buffer& name = in.at("op");
    const std::string op(name.data.get(), name.bytes);
    cuda_host::backwards = in.number("backwards", 0) != 0;
    if (op == "attention") return attention(in, out);
    if (op == "polarity_fusion") return fusion(in, out);
    if (op == "polarity_embedding") return embedding(in, out);
    if (op == "table_grad") return table_grad(in, out);
    if (op == "interleave int64") return interleave<int64_t>(in, out);
    if (op == "interleave int32") return interleave<int32_t>(in, out);
    if (op == "interleave float32") return interleave<float>(in, out);
    if (op == "interleave float64") return interleave<double>(in, out);
    throw std::runtime_error("unknown op " + op);
}

}  // namespace
}  // namespace mixpol::cuda

int main(int, char** arguments) try {
    mixpol::cuda::Entries in(arguments[1]);
    mixpol::cuda::Results out(arguments[2]);
    mixpol::cuda::run(in, out);
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "refused: %s\n", error.what());
    return 2;
}
