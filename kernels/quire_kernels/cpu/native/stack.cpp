#include "stack.h"

#include <algorithm>
#include <cstring>

#include "api.h"
#include "attention.h"
#include "elementwise.h"
#include "gemm_tiles.h"
#include "pool.h"
#include "rotary_store.h"

namespace quire {

namespace {

constexpr int64_t kAlignment = 64;

// Hands out the workspace piece by piece; without a base it only counts.
class Carver {
   public:
    explicit Carver(void* base) : base_(static_cast<char*>(base)) {}

    template <class T>
    T* take(int64_t count) {
        return static_cast<T*>(take_bytes(count * int64_t(sizeof(T))));
    }

    void* take_bytes(int64_t size) {
        void* piece = base_ + used_;
        used_ += (size + kAlignment - 1) / kAlignment * kAlignment;
        return piece;
    }

    int64_t used() const { return used_; }

   private:
    char* base_;
    int64_t used_ = 0;
};

int64_t multiply_scratch_bytes(const StackArgs& stack, int64_t num_tokens) {
    int64_t most = 0;
    auto need = [&](const Packed& w) { most = std::max(most, quire::multiply_scratch_bytes(w, num_tokens)); };
    for (int64_t i = 0; i < stack.num_layers; i++) {
        const LayerArgs& layer = stack.layers[i];
        need(*layer.qkv);
        need(*layer.out);
        need(*layer.gate_up);
        need(*layer.down);
    }
    need(*stack.head);
    return most;
}

// Where the numbers of one step lie while it runs.
template <class T>
struct Workspace {
    T* residual;       // [T, E]
    T* x;              // [T, E]  what goes into a projection, and what comes out of the last one of a half layer
    T* qkv;            // [T, (H + 2K) * D]
    T* attended;       // [T, H * D]
    T* mlp;            // [T, F]
    T* sampled_q;      // [S, H * D]
    T* sampled_residual;  // [S, E]
    void* multiply_scratch;
    void* attention_scratch;
    char* plans;       // one for each group, then the sampled tokens' in the last layer
    int64_t plan_bytes;

    static Workspace carve(Carver& carver, const StackArgs& stack, const StepArgs& step) {
        int64_t tokens = step.num_tokens, sampled = step.num_sampled, hidden = stack.hidden_size;
        int64_t q_width = stack.num_heads * stack.head_dim, kv_width = stack.num_kv_heads * stack.head_dim;
        int64_t mlp_width = 0;
        for (int64_t i = 0; i < stack.num_layers; i++) mlp_width = std::max(mlp_width, stack.layers[i].down->in_features);
        Workspace w;
        w.residual = carver.take<T>(tokens * hidden);
        w.x = carver.take<T>(tokens * hidden);
        w.qkv = carver.take<T>(tokens * (q_width + 2 * kv_width));
        w.attended = carver.take<T>(tokens * q_width);
        w.mlp = carver.take<T>(tokens * mlp_width);
        w.sampled_q = carver.take<T>(sampled * q_width);
        w.sampled_residual = carver.take<T>(sampled * hidden);
        w.multiply_scratch = carver.take_bytes(multiply_scratch_bytes(stack, tokens));
        w.attention_scratch = carver.take_bytes(attention_scratch_bytes(stack.head_dim));
        w.plan_bytes = attention_plan_bytes(std::max(step.num_rows, sampled), tokens, stack.num_heads, stack.num_kv_heads);
        w.plan_bytes = (w.plan_bytes + kAlignment - 1) / kAlignment * kAlignment;
        w.plans = static_cast<char*>(carver.take_bytes(w.plan_bytes * (step.num_groups + 1)));
        return w;
    }

    void* plan(int64_t index) const { return plans + index * plan_bytes; }
};

template <class T>
class Forward {
   public:
    Forward(Team& team, const StackArgs& stack, const StepArgs& step) : team_(team), stack_(stack), step_(step) {
        Carver carver(step.workspace);
        w_ = Workspace<T>::carve(carver, stack, step);
        q_width_ = stack.num_heads * stack.head_dim;
        kv_width_ = stack.num_kv_heads * stack.head_dim;
        qkv_width_ = q_width_ + 2 * kv_width_;
    }

    // By one thread, before the run.
    void plan() const {
        bool is_planned_last = samples_some();
        for (int64_t group = 0; group < step_.num_groups; group++) {
            plan_attention(attention_of_all(stack_.layers[0], group), team_.size(), w_.plan(group));
        }
        if (is_planned_last) {
            const LayerArgs& last = stack_.layers[stack_.num_layers - 1];
            plan_attention(attention_of_sampled(last), team_.size(), w_.plan(step_.num_groups));
        }
    }

    // In the run, by every thread alike.
    void operator()() const {
        embed();
        const T* x = nullptr;
        for (int64_t i = 0; i + 1 < stack_.num_layers; i++) {
            const LayerArgs& layer = stack_.layers[i];
            store_keys(layer, x);
            attend<T>(team_, attention_of_all(layer, layer.group));
            finish_layer(layer, w_.residual, step_.num_tokens);
            x = w_.x;
        }
        const LayerArgs& last = stack_.layers[stack_.num_layers - 1];
        store_keys(last, x);
        if (step_.num_sampled == 0) return;
        T* residual = w_.residual;
        if (samples_some()) {
            pick_sampled();
            attend<T>(team_, attention_of_sampled(last));
            residual = w_.sampled_residual;
        } else {
            attend<T>(team_, attention_of_all(last, last.group));
        }
        finish_layer(last, residual, step_.num_sampled);
        const Packed& head = *stack_.head;
        Rows<const T> x_of_head = norm(w_.x, residual, stack_.final_norm, step_.num_sampled, head);
        if (step_.hidden) return give_hidden();
        auto logits = Rows<float>::apart(step_.logits, head.out_features);
        multiply_f32out<T>(team_, x_of_head, step_.num_sampled, head, logits, w_.multiply_scratch);
    }

   private:
    bool samples_some() const { return step_.sampled_tokens != nullptr; }

    void embed() const {
        int64_t hidden = stack_.hidden_size;
        const T* table = static_cast<const T*>(stack_.embedding);
        team_.for_each(step_.num_tokens, 8, [&](int64_t token) {
            std::memcpy(w_.residual + token * hidden, table + step_.token_ids[token] * hidden, size_t(hidden) * sizeof(T));
        });
    }

    void give_hidden() const {
        int64_t hidden = stack_.hidden_size;
        T* out = static_cast<T*>(step_.hidden);
        team_.for_each(step_.num_sampled, 8, [&](int64_t i) {
            std::memcpy(out + i * hidden, w_.x + i * hidden, size_t(hidden) * sizeof(T));
        });
    }

    // w_.x = norm(residual += x); x may be w_.x, or null. The same as `reader` multiplies it.
    Rows<const T> norm(const T* x, T* residual, const void* weight, int64_t rows, const Packed& reader) const {
        int64_t hidden = stack_.hidden_size;
        const T* norm_weight = static_cast<const T*>(weight);
        if (!reads_staged<T>(reader, rows)) {
            rms_norm_rows<T>(team_, x, hidden, residual, residual, norm_weight, stack_.eps, w_.x, rows, hidden);
            return Rows<const T>::apart(w_.x, hidden);
        }
        T* staged = static_cast<T*>(w_.multiply_scratch);
        Tiles tiles = tiles_of(reader.dtype, rows);
        team_.for_each(tiles.count, 1, [&](int64_t tile) {
            int64_t first = tiles.start(tile) * hidden;
            int num = tiles.rows(tile);
            for (int64_t at = first; at < first + num * hidden; at += hidden)
                rms_norm_row<T>(x ? x + at : nullptr, residual + at, residual + at, norm_weight, stack_.eps, w_.x + at, hidden);
            stage_tile(w_.x + first, hidden, num, hidden, staged + first);
        });
        return Rows<const T>::staged(staged);
    }

    // Queries into w_.qkv, keys and values into the cache.
    void store_keys(const LayerArgs& layer, const T* x) const {
        Rows<const T> normed = norm(x, w_.residual, layer.input_norm, step_.num_tokens, *layer.qkv);
        multiply<T>(team_, normed, step_.num_tokens, *layer.qkv, Rows<T>::apart(w_.qkv, qkv_width_), w_.multiply_scratch);
        rotate_and_store<T>(team_, rotation(layer));
    }

    // w_.x = the layer's second half, still to be added to the residual; w_.attended holds the first half's.
    void finish_layer(const LayerArgs& layer, T* residual, int64_t rows) const {
        auto attended = Rows<const T>::apart(w_.attended, q_width_);
        auto x = Rows<T>::apart(w_.x, stack_.hidden_size);
        multiply<T>(team_, attended, rows, *layer.out, x, w_.multiply_scratch);
        Rows<const T> normed = norm(w_.x, residual, layer.mlp_norm, rows, *layer.gate_up);
        int64_t width = layer.down->in_features;
        Rows<T> mlp{w_.mlp, width, stages_for<T>(*layer.gate_up, *layer.down, rows)};
        multiply<T>(team_, normed, rows, *layer.gate_up, mlp, w_.multiply_scratch);
        multiply<T>(team_, {mlp.data, mlp.stride, mlp.is_staged}, rows, *layer.down, x, w_.multiply_scratch);
    }

    void pick_sampled() const {
        int64_t hidden = stack_.hidden_size;
        team_.for_each(step_.num_sampled, 8, [&](int64_t i) {
            int64_t token = step_.sampled_tokens[i];
            std::memcpy(w_.sampled_q + i * q_width_, w_.qkv + token * qkv_width_, size_t(q_width_) * sizeof(T));
            std::memcpy(w_.sampled_residual + i * hidden, w_.residual + token * hidden, size_t(hidden) * sizeof(T));
        });
    }

    RotateStoreArgs rotation(const LayerArgs& layer) const {
        RotateStoreArgs args{};
        args.q = w_.qkv;
        args.k = w_.qkv + q_width_;
        args.v = w_.qkv + q_width_ + kv_width_;
        args.q_token_stride = args.k_token_stride = args.v_token_stride = qkv_width_;
        args.q_head_stride = args.k_head_stride = args.v_head_stride = stack_.head_dim;
        args.num_tokens = step_.num_tokens;
        args.num_heads = stack_.num_heads;
        args.num_kv_heads = stack_.num_kv_heads;
        args.head_dim = stack_.head_dim;
        args.positions = step_.positions;
        args.cos_sin = stack_.cos_sin;
        args.rotary_dim = stack_.rotary_dim;
        args.q_norm = layer.q_norm;
        args.k_norm = layer.k_norm;
        args.eps = stack_.eps;
        args.k_cache = layer.k_cache;
        args.v_cache = layer.v_cache;
        args.block_stride = stack_.block_stride;
        args.block_size = stack_.block_size;
        args.slots = step_.groups[layer.group].slots;
        return args;
    }

    AttentionArgs attention(const LayerArgs& layer, int64_t group) const {
        AttentionArgs args{};
        args.q_head_stride = stack_.head_dim;
        args.k_cache = layer.k_cache;
        args.v_cache = layer.v_cache;
        args.block_stride = stack_.block_stride;
        args.num_heads = stack_.num_heads;
        args.num_kv_heads = stack_.num_kv_heads;
        args.head_dim = stack_.head_dim;
        args.block_size = stack_.block_size;
        args.scale = stack_.scale;
        args.window = step_.groups[group].window;
        args.out = w_.attended;
        args.scratch = w_.attention_scratch;
        return args;
    }

    AttentionArgs attention_of_all(const LayerArgs& layer, int64_t group) const {
        AttentionArgs args = attention(layer, group);
        args.q = w_.qkv;
        args.q_token_stride = qkv_width_;
        args.block_tables = step_.groups[group].block_tables;
        args.table_stride = step_.groups[group].table_stride;
        args.query_starts = step_.query_starts;
        args.seq_lens = step_.seq_lens;
        args.num_rows = step_.num_rows;
        args.plan = w_.plan(group);
        return args;
    }

    AttentionArgs attention_of_sampled(const LayerArgs& layer) const {
        AttentionArgs args = attention(layer, layer.group);
        args.q = w_.sampled_q;
        args.q_token_stride = q_width_;
        args.block_tables = step_.groups[layer.group].sampled_tables;
        args.table_stride = step_.groups[layer.group].sampled_table_stride;
        args.query_starts = step_.sampled_starts;
        args.seq_lens = step_.sampled_lens;
        args.num_rows = step_.num_sampled_rows;
        args.plan = w_.plan(step_.num_groups);
        return args;
    }

    Team& team_;
    const StackArgs& stack_;
    const StepArgs& step_;
    Workspace<T> w_;
    int64_t q_width_, kv_width_, qkv_width_;
};

}  // namespace

template <class T>
int64_t stack_workspace_bytes(const StackArgs& stack, const StepArgs& step) {
    Carver carver(nullptr);
    Workspace<T>::carve(carver, stack, step);
    return carver.used();
}

template <class T>
void run_stack(const StackArgs& stack, const StepArgs& step) {
    Team& team = Team::instance();
    Forward<T> forward(team, stack, step);
    forward.plan();
    team.run([&](int) { forward(); });
}

}  // namespace quire

QUIRE_API int64_t quire_stack_workspace_bytes(const quire::StackArgs* stack, const quire::StepArgs* step, int is_float) {
    return is_float ? quire::stack_workspace_bytes<float>(*stack, *step) : quire::stack_workspace_bytes<quire::bf16>(*stack, *step);
}

QUIRE_API void quire_run_stack(const quire::StackArgs* stack, const quire::StepArgs* step, int is_float) {
    is_float ? quire::run_stack<float>(*stack, *step) : quire::run_stack<quire::bf16>(*stack, *step);
}
