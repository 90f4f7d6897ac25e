#include <tuple>

#include "../ops.h"
#include "bi_attention_tiles.h"
#include "dropout.h"
#include "parallel.h"

namespace sdpt_ext::cpu {
namespace {

template <typename Storage, typename Element>
struct Arguments {
  using Number = NumberOf<Element>;
  BiAttentionShape shape;
  const Storage *grad_y, *grad_u, *x, *keys, *values, *prompts, *u;
  const Number *grad_mass, *bias, *mass, *image_lse, *text_lse;
  const bool* visible;  // (batch, positions) or null
  Storage *grad_x, *grad_keys, *grad_values, *grad_prompts;
  Number* grad_bias;
};

// The text side of one sample, packed for the products of every tile, per group of heads.
template <typename Storage, typename Element>
struct TextOperands {
  using Number = NumberOf<Element>;
  std::vector<Panels<Element>> keys, values, grad_u;   // (width, columns)
  std::vector<Panels<Element>> key_rows, grad_u_rows;  // (columns, width)
  std::vector<Number> delta;                           // (heads, text): gradient of u and mass times their values

  TextOperands(const BiAttentionShape& shape, const std::vector<HeadGroup>& groups) : delta(shape.heads * shape.text) {
    for (const HeadGroup& group : groups) {
      const int64_t columns = group.count * shape.tokens, text = group.count * shape.text;
      keys.emplace_back(shape.width, columns);
      values.emplace_back(shape.width, columns);
      grad_u.emplace_back(shape.width, text);
      key_rows.emplace_back(columns, shape.width);
      grad_u_rows.emplace_back(text, shape.width);
    }
  }

  void pack(const Arguments<Storage, Element>& a, int64_t sample, int64_t index, const HeadGroup& group) {
    const int64_t width = a.shape.width, head = sample * a.shape.heads + group.first;
    const int64_t columns = group.count * a.shape.tokens, text = group.count * a.shape.text;
    const auto across = [width](const Storage* rows) { return Strided<Storage>{rows, 1, width}; };
    const auto along = [width](const Storage* rows) { return Strided<Storage>{rows, width, 1}; };
    const Storage* key_data = a.keys + head * a.shape.tokens * width;
    const Storage* grad_data = a.grad_u + head * a.shape.text * width;
    keys[index].pack(across(key_data), width, columns);
    values[index].pack(across(a.values + head * a.shape.tokens * width), width, columns);
    grad_u[index].pack(across(grad_data), width, text);
    key_rows[index].pack(along(key_data), columns, width);
    grad_u_rows[index].pack(along(grad_data), text, width);
    for (int64_t row = 0; row < text; ++row) {
      const int64_t place = head * a.shape.text + row;
      Number sum = a.grad_mass[place] * a.mass[place];
      for (int64_t i = 0; i < width; ++i) {
        sum += static_cast<Number>(a.grad_u[place * width + i]) * static_cast<Number>(a.u[place * width + i]);
      }
      delta[group.first * a.shape.text + row] = sum;
    }
  }
};

// One thread's part of the image rows.
template <typename Storage, typename Element>
class Worker {
  using Number = NumberOf<Element>;

 public:
  std::vector<Number> grad_keys, grad_values;  // (heads, tokens, width)
  std::vector<Number> grad_bias;               // (heads, tokens)

  Worker(const Arguments<Storage, Element>& arguments,
         const std::vector<HeadGroup>& groups,
         const Tiles& tiles,
         const TextOperands<Storage, Element>& text,
         const Dropout& dropout,
         Number* grad_prompts)
      : grad_keys(arguments.shape.columns() * arguments.shape.width),
        grad_values(grad_keys.size()),
        grad_bias(arguments.shape.columns()),
        a_(arguments),
        groups_(groups),
        tiles_(tiles),
        text_(text),
        dropout_(dropout),
        grad_prompts_(grad_prompts),
        left_x_(tiles.rows, width()),
        left_grad_(tiles.rows, width()),
        x_rows_(tiles.rows, width()),
        grad_rows_(tiles.rows, width()),
        weight_tile_(tiles.rows, tiles.stride),
        keep_(dropout, tiles.stride),
        row_keep_(dropout, tiles.stride),
        scores_(tile()),
        weights_(tile()),
        row_weights_(tile()),
        grad_x_(scratch<Number>(tiles.rows * width())),
        text_part_(arguments.shape.tokens) {}

  void run(int64_t sample, Range tiles, bool with_prompts) {
    sample_ = sample;
    image_keys_ = dropout_.keys(Dropout::kImage, sample, a_.shape);
    text_keys_ = dropout_.keys(Dropout::kText, sample, a_.shape);
    for (std::vector<Number>* sums : {&grad_keys, &grad_values, &grad_bias}) {
      std::fill(sums->begin(), sums->end(), Number(0));
    }
    for (int64_t index = tiles.begin; index < tiles.end; ++index) {
      const Range rows = tiles_[index];
      const int64_t first = (sample * a_.shape.positions + rows.begin) * width();
      visit(a_.x + first, a_.grad_y + first, rows);
      for (int64_t row = 0; row < rows.size(); ++row) {
        store_row(a_.grad_x + first + row * width(), grad_x_.get() + row * width(), width());
      }
    }
    if (with_prompts && a_.shape.prompts > 0) {
      visit(a_.prompts, nullptr, {a_.shape.positions, a_.shape.positions + a_.shape.prompts});
      for (int64_t i = 0; i < a_.shape.prompts * width(); ++i) {
        grad_prompts_[i] += grad_x_[i];
      }
    }
  }

 private:
  int64_t width() const { return a_.shape.width; }
  Scratch<Number> tile() const { return scratch<Number>(tiles_.rows * tiles_.stride); }

  // Rows of the image, or of the prompts, which have no output of their own and so no `grad_y`.
  void visit(const Storage* x, const Storage* grad_y, Range rows) {
    const LeftOperand<Element> left_x = left_x_(x, rows.size());
    const LeftOperand<Element> left_grad = grad_y ? left_grad_(grad_y, rows.size()) : left_x;
    x_rows_.pack(Strided<Storage>{x, width(), 1}, rows.size(), width());
    if (grad_y) {
      grad_rows_.pack(Strided<Storage>{grad_y, width(), 1}, rows.size(), width());
    }
    for (size_t index = 0; index < groups_.size(); ++index) {
      const HeadGroup& group = groups_[index];
      const int64_t columns = group.count * a_.shape.tokens, text = group.count * a_.shape.text;
      const int64_t depth = elements_of_depth<Element>(width());
      product_.multiply(
          scores_.get(), tiles_.stride, left_x, text_.keys[index].data(), {rows.size(), columns, depth}, false);
      product_.multiply(
          row_weights_.get(), tiles_.stride, left_x, text_.grad_u[index].data(), {rows.size(), text, depth}, false);
      if (grad_y) {
        product_.multiply(
            weights_.get(), tiles_.stride, left_grad, text_.values[index].data(), {rows.size(), columns, depth}, false);
      }
      differentiate(group, rows, grad_y != nullptr);
      add_to_text(group, rows, grad_y != nullptr);
      add_to_rows(index, rows, columns, text);
    }
  }

  // scores -> their gradient; gradients of the weights -> the weights
  void differentiate(const HeadGroup& group, Range rows, bool is_image) {
    const BiAttentionShape& shape = a_.shape;
    const int64_t first = group.first * shape.tokens, head = sample_ * shape.heads + group.first;
    for (int64_t row = 0; row < rows.size(); ++row) {
      const bool hidden = is_image && a_.visible && !a_.visible[sample_ * shape.positions + rows.begin + row];
      const Number* keep = keep_.draw(image_keys_.data() + first, rows.begin + row, group.count * shape.tokens);
      const Number* row_keep = row_keep_.draw(text_keys_.data() + first, rows.begin + row, group.count * shape.tokens);
      for (int64_t index = 0; index < group.count; ++index) {
        const int64_t column = index * shape.tokens, place = row * tiles_.stride + column;
        const int64_t text = index * shape.text, text_place = row * tiles_.stride + text;
        GradientRow<Number> values{};
        values.scores = scores_.get() + place;
        values.weights = is_image ? weights_.get() + place : nullptr;
        values.row_weights = row_weights_.get() + text_place;
        values.text_part = text_part_.data();
        values.grad_bias = grad_bias.data() + first + column;
        values.bias = a_.bias + head * shape.tokens + column;
        values.keep = keep + column;
        values.row_keep = row_keep + column;
        values.text_lse = hidden ? infinities_.data() : a_.text_lse + head * shape.text + text;
        values.text_delta = text_.delta.data() + group.first * shape.text + text;
        values.grad_mass = a_.grad_mass + head * shape.text + text;
        values.image_lse = is_image ? a_.image_lse[(head + index) * shape.positions + rows.begin + row] : Number(0);
        values.tokens = shape.tokens;
        values.text = shape.text;
        softmax_.differentiate(values);
      }
    }
  }

  // Gradients of keys and values.
  void add_to_text(const HeadGroup& group, Range rows, bool is_image) {
    const int64_t columns = group.count * a_.shape.tokens, first = group.first * a_.shape.tokens * width();
    const Extent extent{columns, width(), elements_of_depth<Element>(rows.size())};
    if (is_image) {
      product_.multiply(grad_values.data() + first,
                        width(),
                        weight_tile_.by_column(weights_.get(), rows.size(), columns),
                        grad_rows_.data(),
                        extent,
                        true);
    }
    product_.multiply(grad_keys.data() + first,
                      width(),
                      weight_tile_.by_column(scores_.get(), rows.size(), columns),
                      x_rows_.data(),
                      extent,
                      true);
  }

  // Gradient of the rows: through the scores, and as what the text gathers.
  void add_to_rows(int64_t index, Range rows, int64_t columns, int64_t text) {
    product_.multiply(grad_x_.get(),
                      width(),
                      weight_tile_.by_row(scores_.get(), rows.size(), columns),
                      text_.key_rows[index].data(),
                      {rows.size(), width(), elements_of_depth<Element>(columns)},
                      index > 0);
    product_.multiply(grad_x_.get(),
                      width(),
                      weight_tile_.by_row(row_weights_.get(), rows.size(), text),
                      text_.grad_u_rows[index].data(),
                      {rows.size(), width(), elements_of_depth<Element>(text)},
                      true);
  }

  const Arguments<Storage, Element>& a_;
  const std::vector<HeadGroup>& groups_;
  const Tiles& tiles_;
  const TextOperands<Storage, Element>& text_;
  const Dropout& dropout_;
  Number* grad_prompts_;
  const PanelProduct<Element>& product_ = panel_product<Element>();
  const SoftmaxKernels<Number>& softmax_ = softmax_kernels<Number>();
  LeftRows<Storage, Element> left_x_, left_grad_;
  Panels<Element> x_rows_, grad_rows_;
  WeightTile<Element> weight_tile_;
  KeepRow<Number> keep_, row_keep_;
  Scratch<Number> scores_, weights_, row_weights_, grad_x_;
  std::vector<Number> text_part_;
  std::vector<Number> infinities_ = std::vector<Number>(a_.shape.text, std::numeric_limits<Number>::infinity());
  std::vector<uint32_t> image_keys_, text_keys_;
  int64_t sample_ = 0;
};

// What the workers added up for one head, in the order of the workers.
template <typename Storage, typename Element>
void merge_head(const Arguments<Storage, Element>& a,
                const std::vector<Worker<Storage, Element>>& workers,
                int64_t sample,
                int64_t head) {
  using Number = NumberOf<Element>;
  const auto merge = [&](auto* out, auto member, int64_t numel) {
    const int64_t first = head * numel;
    std::vector<Number> sum((workers.front().*member).begin() + first,
                            (workers.front().*member).begin() + first + numel);
    for (size_t worker = 1; worker < workers.size(); ++worker) {
      const Number* part = (workers[worker].*member).data() + first;
      std::transform(sum.begin(), sum.end(), part, sum.begin(), std::plus<Number>());
    }
    store_row(out + (sample * a.shape.heads + head) * numel, sum.data(), numel);
  };
  using Part = Worker<Storage, Element>;
  merge(a.grad_keys, &Part::grad_keys, a.shape.tokens * a.shape.width);
  merge(a.grad_values, &Part::grad_values, a.shape.tokens * a.shape.width);
  merge(a.grad_bias, &Part::grad_bias, a.shape.tokens);
}

template <typename Storage, typename Element>
void run(const Arguments<Storage, Element>& a, const Dropout& dropout) {
  const BiAttentionShape& shape = a.shape;
  const std::vector<HeadGroup> groups = group_heads(shape);
  const Tiles tiles(shape, groups, sizeof(NumberOf<Element>));
  TextOperands<Storage, Element> text(shape, groups);
  std::vector<NumberOf<Element>> grad_prompts(shape.prompts * shape.width);
  std::vector<Worker<Storage, Element>> workers;
  const int64_t parts = count_parts(tiles);
  for (int64_t part = 0; part < parts; ++part) {
    workers.emplace_back(a, groups, tiles, text, dropout, grad_prompts.data());
  }
  for (int64_t sample = 0; sample < shape.batch; ++sample) {
    parallel_each(groups.size(), [&](int64_t index) { text.pack(a, sample, index, groups[index]); });
    parallel_each(parts,
                  [&](int64_t part) { workers[part].run(sample, share(tiles.count, parts, part), part == parts - 1); });
    parallel_each(shape.heads, [&](int64_t head) { merge_head(a, workers, sample, head); });
  }
  store_row(a.grad_prompts, grad_prompts.data(), shape.prompts * shape.width);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bi_attention_backward(const Tensor& grad_y,
                                                                         const Tensor& grad_u,
                                                                         const Tensor& grad_mass,
                                                                         const Tensor& x,
                                                                         const Tensor& keys,
                                                                         const Tensor& key_bias,
                                                                         const Tensor& values,
                                                                         const std::optional<Tensor>& prompts,
                                                                         const std::optional<Tensor>& image_mask,
                                                                         const Tensor& u,
                                                                         const Tensor& mass,
                                                                         const Tensor& image_lse,
                                                                         const Tensor& text_lse,
                                                                         int64_t num_text,
                                                                         double dropout_p,
                                                                         int64_t seed,
                                                                         bool /*tf32*/) {
  const BiAttentionShape shape =
      check_bi_attention(x, keys, key_bias, values, prompts, image_mask, num_text, dropout_p);
  check_bi_attention_saved(shape, x, key_bias, grad_y, grad_u, grad_mass, u, mass, image_lse, text_lse);
  const auto contiguous = [](const Tensor& tensor) { return torch::stable::contiguous(tensor); };
  const Tensor given[] = {
      contiguous(grad_y), contiguous(grad_u), contiguous(x), contiguous(keys), contiguous(values), contiguous(u)};
  const Tensor numbers[] = {
      contiguous(grad_mass), contiguous(key_bias), contiguous(mass), contiguous(image_lse), contiguous(text_lse)};
  const std::optional<Tensor> prompt_rows = sdpt_ext::contiguous(prompts), visible = sdpt_ext::contiguous(image_mask);
  const Tensor grad_x = empty(x, {shape.batch, shape.positions, shape.width});
  const Tensor grad_keys = empty(keys, {shape.batch, shape.heads, shape.tokens, shape.width});
  const Tensor grad_values = torch::stable::empty_like(grad_keys);
  const Tensor grad_bias = empty(key_bias, {shape.batch, shape.heads, shape.tokens});
  const Tensor grad_prompts = prompts ? empty(x, {shape.prompts, shape.width}) : empty(x, {0});
  dispatch_products(x, [&](auto storage, auto element) {
    using Storage = decltype(storage);
    using Element = decltype(element);
    using Number = NumberOf<Element>;
    Arguments<Storage, Element> a{};
    a.shape = shape;
    a.grad_y = data_of<Storage>(given[0]), a.grad_u = data_of<Storage>(given[1]), a.x = data_of<Storage>(given[2]);
    a.keys = data_of<Storage>(given[3]), a.values = data_of<Storage>(given[4]), a.u = data_of<Storage>(given[5]);
    a.grad_mass = data_of<Number>(numbers[0]), a.bias = data_of<Number>(numbers[1]),
    a.mass = data_of<Number>(numbers[2]);
    a.image_lse = data_of<Number>(numbers[3]), a.text_lse = data_of<Number>(numbers[4]);
    a.prompts = prompts ? data_of<Storage>(*prompt_rows) : nullptr;
    a.visible = image_mask ? data_of<bool>(*visible) : nullptr;
    a.grad_x = mutable_data_of<Storage>(grad_x), a.grad_keys = mutable_data_of<Storage>(grad_keys);
    a.grad_values = mutable_data_of<Storage>(grad_values), a.grad_prompts = mutable_data_of<Storage>(grad_prompts);
    a.grad_bias = mutable_data_of<Number>(grad_bias);
    run(a, Dropout(dropout_p, seed));
  });
  return {grad_x, grad_keys, grad_bias, grad_values, grad_prompts};
}

}  // namespace sdpt_ext::cpu
