// Tensors of a wrong shape, type or place, at every entry: std::invalid_argument, and nothing read or written. Each
// tensor is an allocation of exactly its size, so that AddressSanitizer finds what an entry lets through.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attention/window_attention.hpp"
#include "check.hpp"
#include "conv/conv.hpp"
#include "gdn/gdn.hpp"
#include "svd_lora/svd_lora.hpp"
#include "swin/block.hpp"

using namespace lora_comp;

namespace {

// Holds the memory of the tensors of one call.
class Memory {
 public:
  Tensor floats(const Shape& shape, float value = 1.0f) {
    memory_.push_back(std::make_unique<std::vector<float>>(shape.count(), value));
    Tensor t;
    t.data = memory_.back()->data(), t.shape = shape, t.given = true;
    return t;
  }

 private:
  std::vector<std::unique_ptr<std::vector<float>>> memory_;
};

struct Argument {
  const char* name;
  Tensor* tensor;
  bool optional = false;
};

// Runs with each argument in turn spoilt in each way; the message must name it, or one that contradicts it.
void spoil(Memory& memory, const std::vector<Argument>& arguments, const std::function<void()>& call) {
  call();
  for (const Argument& argument : arguments) {
    Tensor& t = *argument.tensor;
    const Tensor good = t;
    const auto refused = [&](bool named) {
      bool thrown = false;
      try {
        call();
      } catch (const std::invalid_argument& error) {
        thrown = true;
        if (named && std::string(error.what()).rfind(argument.name, 0) != 0)
          std::fprintf(stderr, "%s: %s\n", argument.name, error.what()), std::abort();
      }
      if (!thrown) std::fprintf(stderr, "%s of shape %s passes\n", argument.name, t.shape.text().c_str());
      CHECK(thrown);
      t = good;
    };
    for (size_t i = 0; i < good.shape.dimensions; ++i) {
      Shape smaller = good.shape;
      --smaller.sizes[i];
      t = memory.floats(smaller);
      refused(false);
    }
    Shape flat{good.shape.count()};
    if (!(flat == good.shape)) t = memory.floats(flat), refused(false);
    t.type = Type::kOther, refused(true);
    t.gpu = true, refused(true);
    t.contiguous = false, refused(true);
    t.data = nullptr, refused(true);
    if (!argument.optional) t.given = false, refused(false);
  }
}

void test_gdn() {
  Memory m;
  GdnTensors a{m.floats({70, 32}), m.floats({32}), m.floats({32, 32}), false};
  Tensor y = m.floats({70, 32}), grad_x = m.floats({70, 32}), grad_beta = m.floats({32}),
         grad_gamma = m.floats({32, 32});
  spoil(m, {{"beta", &a.beta}, {"gamma", &a.gamma}, {"y", &y}}, [&] { gdn_forward(a, y, 1); });
  spoil(m, {{"x", &a.x}}, [&] { gdn_forward(a, y, 1); });
  spoil(m, {{"grad_y", &y}, {"grad_x", &grad_x}, {"grad_beta", &grad_beta}, {"grad_gamma", &grad_gamma}},
        [&] { gdn_backward(a, y, grad_x, grad_beta, grad_gamma, 1); });
}

void test_window_attention() {
  Memory m;
  WindowAttentionTensors a{m.floats({2, 5, 6, 3, 2, 7}), m.floats({2, 16, 16}), 4, 2};
  Tensor out = m.floats({2, 5, 6, 2, 7}), grad = m.floats(a.qkv.shape), grad_bias = m.floats(a.bias.shape);
  spoil(m, {{"qkv", &a.qkv}, {"bias", &a.bias}, {"out", &out}}, [&] { window_attention_forward(a, out, 1, {}); });
  spoil(m, {{"grad_out", &out}, {"grad_qkv", &grad}, {"grad_bias", &grad_bias, true}},
        [&] { window_attention_backward(a, out, grad, grad_bias, 1, {}); });
  a.shift = 4;
  CHECK_THROWS(std::invalid_argument, window_attention_forward(a, out, 1, {}));
}

void test_low_rank_linear(bool batched) {
  Memory m;
  const auto each = [&](size_t rows) { return batched ? Shape{3, rows, 2} : Shape{rows, 2}; };
  LowRankTensors a{m.floats({3, 7, 5}),
                   m.floats({6, 5}),
                   m.floats({6}),
                   m.floats(each(6)),
                   m.floats(batched ? Shape{3, 2} : Shape{2}),
                   m.floats(each(5)),
                   2.0f};
  Tensor y = m.floats({3, 7, 6}), t = m.floats(batched ? Shape{3, 7, 4} : Shape{1, 21, 4});
  LowRankGradientTensors to{m.floats(a.x.shape), m.floats(a.u.shape), m.floats(a.s.shape), m.floats(a.v.shape)};
  spoil(m,
        {{"x", &a.x},
         {"bias", &a.bias, true},
         {"weight", &a.weight},
         {"u", &a.u},
         {"s", &a.s},
         {"v", &a.v},
         {"y", &y},
         {"t", &t}},
        [&] { low_rank_linear_forward(a, y, t, 1, {}); });
  a.bias.given = false;
  spoil(m,
        {{"grad_y", &y},
         {"t", &t},
         {"grad_x", &to.x, true},
         {"grad_u", &to.u, true},
         {"grad_s", &to.s, true},
         {"grad_v", &to.v, true}},
        [&] { low_rank_linear_backward(a, y, t, {}, to, 1, {}); });
  CHECK_THROWS(std::invalid_argument, low_rank_linear_forward(a, y, t, 1, 0));  // a stream, but nothing on a GPU
}

SwinLayerTensors swin_layer(Memory& m, size_t in, size_t out, size_t batch) {
  const auto each = [&](size_t rows) { return batch ? Shape{batch, rows, 3} : Shape{rows, 3}; };
  return {m.floats({out, in}), m.floats({out}), m.floats(each(out)), m.floats(batch ? Shape{batch, 3} : Shape{3}),
          m.floats(each(in))};
}

SwinBlockTensors swin_block(Memory& m, size_t batch) {
  return {m.floats({32}),
          m.floats({32}),
          m.floats({32}),
          m.floats({32}),
          m.floats({2, 64, 64}),
          swin_layer(m, 32, 96, batch),
          swin_layer(m, 32, 32, batch),
          swin_layer(m, 32, 64, batch),
          swin_layer(m, 64, 32, batch)};
}

void add(std::vector<Argument>& to, const std::vector<const char*>& names, SwinLayerTensors& a) {
  Tensor* const tensors[] = {&a.weight, &a.bias, &a.u, &a.s, &a.v};
  for (size_t i = 0; i < 5; ++i) to.push_back({names[i], tensors[i]});
}

void test_swin_block(size_t batch) {
  Memory m;
  SwinBlockTensors block = swin_block(m, batch), grads = swin_block(m, batch);
  SwinBlockCall call{m.floats({2, 9, 8, 32}), m.floats({2, 2, 1, 48 * 2 + 32 + 64, 64}), 8, 4, false};
  Tensor y = m.floats(call.x.shape), grad_x = m.floats(call.x.shape);
  std::vector<Argument> arguments{{"x", &call.x},
                                  {"kept", &call.kept, true},
                                  {"norm1_weight", &block.norm1_weight},
                                  {"norm1_bias", &block.norm1_bias},
                                  {"norm2_weight", &block.norm2_weight},
                                  {"norm2_bias", &block.norm2_bias},
                                  {"position", &block.position},
                                  {"y", &y}};
  add(arguments, {"qkv_weight", "qkv_bias", "qkv_u", "qkv_s", "qkv_v"}, block.qkv);
  add(arguments, {"proj_weight", "proj_bias", "proj_u", "proj_s", "proj_v"}, block.proj);
  add(arguments, {"fc1_weight", "fc1_bias", "fc1_u", "fc1_s", "fc1_v"}, block.fc1);
  add(arguments, {"fc2_weight", "fc2_bias", "fc2_u", "fc2_s", "fc2_v"}, block.fc2);
  spoil(m, arguments, [&] { swin_block_forward(block, call, y, 1); });
  std::vector<Argument> of_grads{{"grad_y", &y}, {"grad_x", &grad_x, true}, {"grad_position", &grads.position}};
  add(of_grads, {"grad_fc1_weight", "grad_fc1_bias", "grad_fc1_u", "grad_fc1_s", "grad_fc1_v"}, grads.fc1);
  of_grads[5].optional = of_grads[6].optional = of_grads[7].optional = true;  // of u, s and v
  spoil(m, of_grads, [&] { swin_block_backward(block, call, y, grad_x, grads, {}, 1); });
}

void test_prompts() {
  Memory m;
  const auto layer = [&](size_t in, size_t out) {
    return SwinLayerTensors{m.floats({out, in}), m.floats({out}), {}, {}, {}};
  };
  const SwinBlockTensors block{m.floats({32}), m.floats({32}), m.floats({32}), m.floats({32}), m.floats({2, 64, 64}),
                               layer(32, 96),  layer(32, 32),  layer(32, 64),  layer(64, 32)};
  for (const Shape& shape : {Shape{16, 32}, Shape{2, 6, 4, 32}}) {
    SwinBlockCall call{m.floats({2, 12, 8, 32}), {}, 8, 4, false, m.floats(shape)};
    Tensor y = m.floats(call.x.shape), grad = m.floats(shape);
    if (shape.dimensions == 4)
      spoil(m, {{"prompts", &call.prompts, true}}, [&] { swin_block_forward(block, call, y, 1); });
    const auto backward = [&] { swin_block_backward(block, call, y, {}, {}, grad, 1); };
    spoil(m, {{"grad_prompts", &grad, true}}, backward);
    call.prompts.shape = {0, 32};
    CHECK_THROWS(std::invalid_argument, (swin_block_forward(block, call, y, 1), 0));
    call.prompts.shape = {65, 32};
    CHECK_THROWS(std::invalid_argument, (swin_block_forward(block, call, y, 1), 0));
    call.prompts = {};
    CHECK_THROWS(std::invalid_argument, (backward(), 0));
  }
}

void test_conv3x3() {
  Memory m;
  Conv3x3Tensors a{m.floats({2, 5, 6, 16}), m.floats({2, 5, 6, 32}), m.floats({6, 6, 48, 16}), m.floats({16}), true};
  Tensor y = m.floats({2, 5, 6, 16});
  const auto call = [&] { conv3x3(a, y, 1); };
  spoil(m, {{"weight", &a.weight}, {"y", &y}}, call);
  a.more.given = false;
  CHECK_THROWS(std::invalid_argument, (call(), 0));
}

}  // namespace

int main() {
  test_gdn();
  test_window_attention();
  for (const bool batched : {false, true}) test_low_rank_linear(batched);
  for (const size_t batch : {0, 2}) test_swin_block(batch);
  test_prompts();
  test_conv3x3();
}
