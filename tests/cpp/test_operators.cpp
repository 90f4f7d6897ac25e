// Loads a library of operators as a C++ program would and runs each: test_operators LIBRARY OPERATOR.
#include <dlfcn.h>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <tuple>

namespace {

using at::Tensor;
using Ints = at::IntArrayRef;

template <typename Signature>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// With offsets of zero and without a mask the operator is an ordinary convolution, which torch has.
struct Example {
  Tensor image = at::randn({2, 5, 9, 7}, at::kDouble);
  Tensor offset = at::zeros({2, 18, 9, 7}, at::kDouble);
  Tensor mask = at::ones({2, 9, 9, 7}, at::kDouble);
  Tensor weight = at::randn({4, 5, 3, 3}, at::kDouble);
  Tensor bias = at::randn({4}, at::kDouble);
};

bool test_deform_conv2d() {
  const Example e;
  using Signature = Tensor(const Tensor&,
                           const Tensor&,
                           const std::optional<Tensor>&,
                           const Tensor&,
                           const std::optional<Tensor>&,
                           Ints,
                           Ints);
  const auto op = find<Signature>("sdpt_ext::deform_conv2d");
  const Tensor plain = op.call(e.image, e.offset, std::nullopt, e.weight, std::nullopt, {2, 2}, {1, 1});
  const Tensor full = op.call(e.image, e.offset, e.mask, e.weight, e.bias, {1, 1}, {1, 1});
  return at::allclose(plain, at::conv2d(e.image, e.weight, {}, 2, 1)) &&
         at::allclose(full, at::conv2d(e.image, e.weight, e.bias, 1, 1));
}

bool test_deform_conv2d_backward() {
  const Example e;
  const Tensor grad = at::randn({2, 4, 9, 7}, at::kDouble);
  using DataSignature = std::tuple<Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, const Tensor&, Ints, Ints, bool, bool);
  using WeightSignature =
      Tensor(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, const Tensor&, Ints, Ints);
  const auto [grad_image, grad_offset, grad_mask] =
      find<DataSignature>("sdpt_ext::deform_conv2d_backward_data")
          .call(grad, e.image, e.offset, e.mask, e.weight, {1, 1}, {1, 1}, true, true);
  const Tensor grad_weight = find<WeightSignature>("sdpt_ext::deform_conv2d_backward_weight")
                                 .call(grad, e.image, e.offset, e.mask, e.weight, {1, 1}, {1, 1});
  const auto [expected_image, expected_weight, unused] = at::convolution_backward(
      grad, e.image, e.weight, {0}, {1, 1}, {1, 1}, {1, 1}, false, {0, 0}, 1, {true, true, false});
  // The mask scales each tap, so its gradients add up to those of the whole output.
  return at::allclose(grad_image, expected_image) && at::allclose(grad_weight, expected_weight) &&
         grad_offset.sizes() == e.offset.sizes() &&
         at::allclose(grad_mask.sum(), (grad * at::conv2d(e.image, e.weight, {}, 1, 1)).sum());
}

// Keys of zeros make every weight equal: each side gathers the mean of the other.
bool test_bi_attention() {
  const Tensor x = at::randn({2, 9, 8}, at::kDouble), values = at::randn({2, 3, 5, 8}, at::kDouble);
  const Tensor keys = at::zeros_like(values), bias = at::zeros({2, 3, 5}, at::kDouble);
  const Tensor prompts = at::randn({4, 8}, at::kDouble), visible = at::ones({2, 9}, at::kBool);
  using Signature = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       const std::optional<Tensor>&,
                                                                       const std::optional<Tensor>&,
                                                                       int64_t,
                                                                       double,
                                                                       int64_t,
                                                                       bool);
  const auto [y, u, mass, image_lse, text_lse] =
      find<Signature>("sdpt_ext::bi_attention").call(x, keys, bias, values, prompts, visible, 4, 0., 0, false);
  const Tensor rows = at::cat({x, prompts.expand({2, 4, 8})}, 1);
  return at::allclose(y, values.mean(2).sum(1).unsqueeze(1).expand_as(x)) &&
         at::allclose(u, rows.mean(1).view({2, 1, 1, 8}).expand_as(u)) && at::allclose(mass, at::ones_like(mass)) &&
         at::allclose(image_lse, at::full_like(image_lse, std::log(5.))) &&
         at::allclose(text_lse, at::full_like(text_lse, std::log(13.)));
}

bool test_bi_attention_backward() {
  const Tensor x = at::randn({2, 9, 8}, at::kDouble), values = at::randn({2, 3, 5, 8}, at::kDouble);
  const Tensor keys = at::zeros_like(values), bias = at::zeros({2, 3, 5}, at::kDouble),
               mass = at::ones({2, 3, 5}, at::kDouble);
  const Tensor u = x.mean(1).view({2, 1, 1, 8}).expand_as(values), grad_y = at::randn_like(x);
  const Tensor image_lse = at::full({2, 3, 9}, std::log(5.), at::kDouble),
               text_lse = at::full({2, 3, 5}, std::log(9.), at::kDouble);
  using Signature = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       const std::optional<Tensor>&,
                                                                       const std::optional<Tensor>&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       const Tensor&,
                                                                       int64_t,
                                                                       double,
                                                                       int64_t,
                                                                       bool);
  const auto [grad_x, grad_keys, grad_bias, grad_values, grad_prompts] =
      find<Signature>("sdpt_ext::bi_attention_backward")
          .call(grad_y,
                at::ones_like(u),
                at::zeros_like(mass),
                x,
                keys,
                bias,
                values,
                std::nullopt,
                std::nullopt,
                u,
                mass,
                image_lse,
                text_lse,
                5,
                0.,
                0,
                false);
  return at::allclose(grad_values, (grad_y.sum(1) / 5).view({2, 1, 1, 8}).expand_as(values)) &&
         at::allclose(grad_x, at::full_like(grad_x, 3. * 5 / 9)) && grad_prompts.numel() == 0 &&
         at::allclose(grad_bias.sum(2), at::zeros({2, 3}, at::kDouble)) && grad_keys.sizes() == keys.sizes();
}

bool test_nms() {
  const Tensor boxes = at::tensor({0., 0., 9., 9., 0., 0., 9., 8., 0., 0., 9., 9.}).view({3, 4});
  const Tensor scores = at::tensor({0.8, 0.9, 0.7}), labels = at::tensor({1, 1, 2}, at::kLong);
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, double);
  return find<Signature>("sdpt_ext::nms").call(boxes, scores, labels, 0.5).equal(at::tensor({1, 2}, at::kLong));
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, std::function<bool()>> tests{{"bi_attention", test_bi_attention},
                                                           {"bi_attention_backward", test_bi_attention_backward},
                                                           {"deform_conv2d", test_deform_conv2d},
                                                           {"deform_conv2d_backward", test_deform_conv2d_backward},
                                                           {"nms", test_nms}};
  if (argc != 3 || tests.count(argv[2]) == 0) {
    std::fprintf(stderr, "usage: %s LIBRARY OPERATOR, one of:", argv[0]);
    for (const auto& test : tests) {
      std::fprintf(stderr, " %s", test.first.c_str());
    }
    return 2;
  }
  if (dlopen(argv[1], RTLD_NOW) == nullptr) {
    std::fprintf(stderr, "cannot load %s: %s\n", argv[1], dlerror());
    return 1;
  }
  at::manual_seed(0);
  const bool passed = tests.at(argv[2])();
  std::printf("%s: %s\n", argv[2], passed ? "as expected" : "WRONG RESULT");
  return passed ? 0 : 1;
}
