#include <cmath>

#include "../ops.h"
#include "bi_attention_tiles.h"
#include "dropout.h"
#include "layer_norm.h"
#include "online_softmax.h"
#include "parallel.h"

namespace sdpt_ext::cpu {
namespace {

template <typename Storage, typename Element>
struct Arguments {
  using Number = NumberOf<Element>;
  BiAttentionShape shape;
  const Storage *x, *keys, *values, *prompts;
  const Number* bias;
  const bool* visible;             // (batch, positions) or null
  const LayerNorm<Storage>* norm;  // or null: x is what it makes of the image, and y starts from x + offset
  const Storage* offset;           // (width)
  Storage *y, *u;
  Number *mass, *image_lse, *text_lse;  // image_lse may be null
};

// Keys and values of one sample, packed for the products of every tile.
template <typename Element>
struct TextOperands {
  std::vector<Panels<Element>> keys, values;  // per group (width, columns) and (columns, width)

  TextOperands(const BiAttentionShape& shape, const std::vector<HeadGroup>& groups) {
    for (const HeadGroup& group : groups) {
      keys.emplace_back(shape.width, group.count * shape.tokens);
      values.emplace_back(group.count * shape.tokens, shape.width);
    }
  }

  template <typename Storage>
  void pack(int64_t index,
            const HeadGroup& group,
            const BiAttentionShape& shape,
            const Storage* key_rows,
            const Storage* value_rows) {
    const int64_t first = group.first * shape.tokens * shape.width, columns = group.count * shape.tokens;
    keys[index].pack(Strided<Storage>{key_rows + first, 1, shape.width}, shape.width, columns);
    values[index].pack(Strided<Storage>{value_rows + first, shape.width, 1}, columns, shape.width);
  }
};

// One thread's part of the image rows.
template <typename Storage, typename Element>
class Worker {
  using Number = NumberOf<Element>;

 public:
  OnlineSoftmax<Number> gathered;

  Worker(const Arguments<Storage, Element>& arguments,
         const std::vector<HeadGroup>& groups,
         const Tiles& tiles,
         const TextOperands<Element>& text,
         const Dropout& dropout)
      : gathered(arguments.shape),
        a_(arguments),
        groups_(groups),
        tiles_(tiles),
        text_(text),
        dropout_(dropout),
        left_(tiles.rows, a_.shape.width),
        rows_(tiles.rows, a_.shape.width),
        weight_tile_(tiles.rows, tiles.stride),
        keep_(dropout, tiles.stride),
        scores_(scratch<Number>(tiles.rows * tiles.stride)),
        weights_(scratch<Number>(tiles.rows * tiles.stride)),
        output_(scratch<Number>(tiles.rows * a_.shape.width)),
        raised_(tiles.stride),
        total_(tiles.stride),
        kept_(tiles.stride) {}

  void run(int64_t sample, Range tiles, bool with_prompts) {
    const BiAttentionShape& shape = a_.shape;
    sample_ = sample;
    image_keys_ = dropout_.keys(Dropout::kImage, sample, shape);
    text_keys_ = dropout_.keys(Dropout::kText, sample, shape);
    gathered.reset();
    for (int64_t index = tiles.begin; index < tiles.end; ++index) {
      const Range rows = tiles_[index];
      const Storage* image = a_.x + (sample * shape.positions + rows.begin) * shape.width;
      if (a_.norm) {
        (*a_.norm)(y_of(rows), image, rows.size());
        image = y_of(rows);
      }
      visit(image, rows, true);
    }
    if (with_prompts && shape.prompts > 0 && shape.text > 0) {
      visit(a_.prompts, {shape.positions, shape.positions + shape.prompts}, false);
    }
  }

 private:
  void visit(const Storage* data, Range rows, bool is_image) {
    const BiAttentionShape& shape = a_.shape;
    const int64_t depth = elements_of_depth<Element>(shape.width);
    const LeftOperand<Element> left = left_(data, rows.size());
    if (shape.text > 0) {
      rows_.pack(Strided<Storage>{data, shape.width, 1}, rows.size(), shape.width);
    }
    Number* const output = is_image ? output_of(rows) : nullptr;
    for (size_t index = 0; index < groups_.size(); ++index) {
      const HeadGroup& group = groups_[index];
      product_.multiply(scores_.get(),
                        tiles_.stride,
                        left,
                        text_.keys[index].data(),
                        {rows.size(), group.count * shape.tokens, depth},
                        false);
      if (is_image) {
        if (index == 0 && a_.norm) {
          start_from(data, output, rows.size());
        }
        attend_to_text(group, rows);
        const int64_t columns = group.count * shape.tokens;
        product_.multiply(output,
                          shape.width,
                          weight_tile_.by_row(weights_.get(), rows.size(), columns),
                          text_.values[index].data(),
                          {rows.size(), shape.width, elements_of_depth<Element>(columns)},
                          index > 0 || a_.norm);
      }
      if (shape.text > 0) {
        gather(group, rows, is_image && a_.visible);
      }
    }
    if (output == output_.get()) {
      for (int64_t row = 0; row < rows.size(); ++row) {
        store_row(y_of(rows) + row * shape.width, output + row * shape.width, shape.width);
      }
    }
  }

  Storage* y_of(Range rows) const {
    return a_.y + (sample_ * a_.shape.positions + rows.begin) * a_.shape.width;
  }

  // y itself, unless it has another type or lies over rows of x that a later group still multiplies.
  Number* output_of(Range rows) const {
    if constexpr (std::is_same_v<Storage, Number>) {
      if (groups_.size() == 1 || !a_.norm) {
        return y_of(rows);
      }
    }
    return output_.get();
  }

  // Where a single group writes y over x, its scores have read x by now.
  void start_from(const Storage* data, Number* output, int64_t rows) {
    const int64_t width = a_.shape.width;
    for (int64_t row = 0; row < rows; ++row) {
      std::transform(data + row * width,
                     data + (row + 1) * width,
                     a_.offset,
                     output + row * width,
                     [](Storage x, Storage offset) { return static_cast<Number>(x) + static_cast<Number>(offset); });
    }
  }

  // scores -> weights over the text
  void attend_to_text(const HeadGroup& group, Range rows) {
    const BiAttentionShape& shape = a_.shape;
    const int64_t tokens = shape.tokens, columns = group.count * tokens;
    const Number* bias = a_.bias + (sample_ * shape.heads + group.first) * tokens;
    Number* lse =
        a_.image_lse ? a_.image_lse + (sample_ * shape.heads + group.first) * shape.positions + rows.begin : nullptr;
    for (int64_t row = 0; row < rows.size(); ++row) {
      const Number* keep = keep_.draw(image_keys_.data() + group.first * tokens, rows.begin + row, columns);
      softmax_.normalise(weights_.get() + row * tiles_.stride,
                         scores_.get() + row * tiles_.stride,
                         bias,
                         keep,
                         lse ? lse + row : nullptr,
                         shape.positions,
                         group.count,
                         tokens);
    }
  }

  // Adds the rows to what every text token gathers from the image; the scores are consumed.
  void gather(const HeadGroup& group, Range rows, bool masked) {
    const BiAttentionShape& shape = a_.shape;
    const int64_t first = group.first * shape.tokens, columns = group.count * shape.tokens;
    if (masked) {
      hide(rows, columns);
    }
    std::copy_n(gathered.maximum.data() + first, columns, raised_.data());
    for (int64_t row = 0; row < rows.size(); ++row) {
      softmax_.raise(raised_.data(), scores_.get() + row * tiles_.stride, columns);
    }
    gathered.rescale(shape, group, raised_.data());
    // While everything is hidden there is no maximum: -inf less anything finite gives weights of zero.
    std::replace(raised_.begin(), raised_.end(), -kInfinity<Number>, Number(0));
    std::fill(total_.begin(), total_.end(), Number(0));
    std::fill(kept_.begin(), kept_.end(), Number(0));
    for (int64_t row = 0; row < rows.size(); ++row) {
      const Number* keep = keep_.draw(text_keys_.data() + first, rows.begin + row, columns);
      softmax_.exponentiate(
          scores_.get() + row * tiles_.stride, raised_.data(), keep, total_.data(), kept_.data(), columns);
    }
    // Sums of sums: adding thousands of rows one by one would lose digits.
    for (int64_t column = 0; column < columns; ++column) {
      gathered.total[first + column] += total_[column], gathered.kept[first + column] += kept_[column];
    }
    const LeftOperand<Element> weights = weight_tile_.by_column(scores_.get(), rows.size(), columns);
    // Without prompts the columns of all heads are adjacent here as there.
    const int64_t heads = shape.text == shape.tokens ? group.count : 1;
    for (int64_t head = 0; head < group.count; head += heads) {
      product_.multiply(gathered.sums.data() + (group.first + head) * shape.text * shape.width,
                        shape.width,
                        weights.from_row(head * shape.tokens),
                        rows_.data(),
                        {heads * shape.text, shape.width, elements_of_depth<Element>(rows.size())},
                        true);
    }
  }

  void hide(Range rows, int64_t columns) {
    const bool* visible = a_.visible + sample_ * a_.shape.positions + rows.begin;
    for (int64_t row = 0; row < rows.size(); ++row) {
      if (!visible[row]) {
        std::fill_n(scores_.get() + row * tiles_.stride, columns, -kInfinity<Number>);
      }
    }
  }

  const Arguments<Storage, Element>& a_;
  const std::vector<HeadGroup>& groups_;
  const Tiles& tiles_;
  const TextOperands<Element>& text_;
  const Dropout& dropout_;
  const PanelProduct<Element>& product_ = panel_product<Element>();
  const SoftmaxKernels<Number>& softmax_ = softmax_kernels<Number>();
  LeftRows<Storage, Element> left_;
  Panels<Element> rows_;
  WeightTile<Element> weight_tile_;
  KeepRow<Number> keep_;
  Scratch<Number> scores_, weights_, output_;
  std::vector<Number> raised_, total_, kept_;
  std::vector<uint32_t> image_keys_, text_keys_;
  int64_t sample_ = 0;
};

// What the workers gathered for the text tokens of one head, in the order of the workers.
template <typename Storage, typename Element>
void merge_head(const Arguments<Storage, Element>& a,
                const std::vector<Worker<Storage, Element>>& workers,
                int64_t sample,
                int64_t head) {
  using Number = NumberOf<Element>;
  const BiAttentionShape& shape = a.shape;
  std::vector<Number> sum(shape.width);
  for (int64_t token = 0; token < shape.text; ++token) {
    const int64_t column = head * shape.tokens + token, place = (sample * shape.heads + head) * shape.text + token;
    Number maximum = -kInfinity<Number>, total = 0, kept = 0;
    for (const auto& worker : workers) {
      maximum = std::max(maximum, worker.gathered.maximum[column]);
    }
    std::fill(sum.begin(), sum.end(), Number(0));
    for (const auto& worker : workers) {
      const OnlineSoftmax<Number>& part = worker.gathered;
      if (part.total[column] == 0) {
        continue;
      }
      const Number factor = std::exp(part.maximum[column] - maximum);
      total += factor * part.total[column], kept += factor * part.kept[column];
      const Number* row = part.sums.data() + (head * shape.text + token) * shape.width;
      for (int64_t i = 0; i < shape.width; ++i) {
        sum[i] += factor * row[i];
      }
    }
    const bool saw_something = total != 0;
    const Number share = saw_something ? 1 / total : 0;
    std::for_each(sum.begin(), sum.end(), [share](Number& value) { value *= share; });
    store_row(a.u + place * shape.width, sum.data(), shape.width);
    a.mass[place] = saw_something ? kept / total : 0;  // exactly 1 without dropout
    a.text_lse[place] = saw_something ? maximum + std::log(total) : kInfinity<Number>;
  }
}

template <typename Storage, typename Element>
void run(const Arguments<Storage, Element>& a, const Dropout& dropout) {
  const BiAttentionShape& shape = a.shape;
  const std::vector<HeadGroup> groups = group_heads(shape);
  const Tiles tiles(shape, groups, sizeof(NumberOf<Element>));
  TextOperands<Element> text(shape, groups);
  const int64_t parts = count_parts(tiles);
  std::vector<Worker<Storage, Element>> workers;
  for (int64_t part = 0; part < parts; ++part) {
    workers.emplace_back(a, groups, tiles, text, dropout);
  }
  for (int64_t sample = 0; sample < shape.batch; ++sample) {
    const int64_t first = sample * shape.columns() * shape.width;
    parallel_each(groups.size(),
                  [&](int64_t index) { text.pack(index, groups[index], shape, a.keys + first, a.values + first); });
    parallel_each(parts,
                  [&](int64_t part) { workers[part].run(sample, share(tiles.count, parts, part), part == parts - 1); });
    parallel_each(shape.heads, [&](int64_t head) { merge_head(a, workers, sample, head); });
  }
}

// -> y, u, mass, image_lse, text_lse; image_lse is empty with a residual: only a backward pass would read it.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> attend(const Tensor& x,
                                                          const Tensor& keys,
                                                          const Tensor& key_bias,
                                                          const Tensor& values,
                                                          const std::optional<Tensor>& prompts,
                                                          const std::optional<Tensor>& image_mask,
                                                          const Residual* residual,
                                                          const Dropout& dropout,
                                                          const BiAttentionShape& shape) {
  const Tensor image = torch::stable::contiguous(x), key_rows = torch::stable::contiguous(keys);
  const Tensor bias = torch::stable::contiguous(key_bias), value_rows = torch::stable::contiguous(values);
  const std::optional<Tensor> prompt_rows = contiguous(prompts), visible = contiguous(image_mask);
  const Tensor offset = residual ? torch::stable::contiguous(residual->offset) : Tensor();
  const Tensor y = empty(x, {shape.batch, shape.positions, shape.width});
  const Tensor u = empty(x, {shape.batch, shape.heads, shape.text, shape.width});
  const Tensor mass = empty(key_bias, {shape.batch, shape.heads, shape.text}),
               text_lse = torch::stable::empty_like(mass);
  const Tensor image_lse = empty(key_bias, {shape.batch, shape.heads, residual ? 0 : shape.positions});
  dispatch_products(x, [&](auto storage, auto element) {
    using Storage = decltype(storage);
    using Element = decltype(element);
    using Number = NumberOf<Element>;
    std::optional<LayerNorm<Storage>> norm;
    if (residual) {
      norm.emplace(*residual);
    }
    run(Arguments<Storage, Element>{shape,
                                    data_of<Storage>(image),
                                    data_of<Storage>(key_rows),
                                    data_of<Storage>(value_rows),
                                    prompts ? data_of<Storage>(*prompt_rows) : nullptr,
                                    data_of<Number>(bias),
                                    image_mask ? data_of<bool>(*visible) : nullptr,
                                    norm ? &*norm : nullptr,
                                    residual ? data_of<Storage>(offset) : nullptr,
                                    mutable_data_of<Storage>(y),
                                    mutable_data_of<Storage>(u),
                                    mutable_data_of<Number>(mass),
                                    residual ? nullptr : mutable_data_of<Number>(image_lse),
                                    mutable_data_of<Number>(text_lse)},
        dropout);
  });
  return {y, u, mass, image_lse, text_lse};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> bi_attention(const Tensor& x,
                                                                const Tensor& keys,
                                                                const Tensor& key_bias,
                                                                const Tensor& values,
                                                                const std::optional<Tensor>& prompts,
                                                                const std::optional<Tensor>& image_mask,
                                                                int64_t num_text,
                                                                double dropout_p,
                                                                int64_t seed,
                                                                bool /*tf32*/) {
  const BiAttentionShape shape =
      check_bi_attention(x, keys, key_bias, values, prompts, image_mask, num_text, dropout_p);
  return attend(x, keys, key_bias, values, prompts, image_mask, nullptr, Dropout(dropout_p, seed), shape);
}

std::tuple<Tensor, Tensor, Tensor> bi_attention_residual(const Tensor& v,
                                                         const Tensor& norm_weight,
                                                         const Tensor& norm_bias,
                                                         double norm_epsilon,
                                                         const Tensor& keys,
                                                         const Tensor& key_bias,
                                                         const Tensor& values,
                                                         const Tensor& offset,
                                                         const std::optional<Tensor>& prompts,
                                                         const std::optional<Tensor>& image_mask,
                                                         int64_t num_text) {
  const BiAttentionShape shape = check_bi_attention(v, keys, key_bias, values, prompts, image_mask, num_text, 0);
  for (const Tensor* row : {&norm_weight, &norm_bias, &offset}) {
    STD_TORCH_CHECK(row->dim() == 1 && row->size(0) == shape.width && row->scalar_type() == v.scalar_type(),
                    "bi_attention_residual: norm_weight, norm_bias and offset must have shape (",
                    shape.width,
                    ",) and the dtype of v");
  }
  const Residual residual{norm_weight, norm_bias, offset, norm_epsilon};
  const auto [y, u, mass, image_lse, text_lse] =
      attend(v, keys, key_bias, values, prompts, image_mask, &residual, Dropout(0, 0), shape);
  return {y, u, mass};
}

}  // namespace sdpt_ext::cpu
