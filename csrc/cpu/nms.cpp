#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>

#include <torch/csrc/stable/ops.h>

#include "../nms_check.h"
#include "../ops.h"
#include "dispatch.h"

namespace sdpt_ext::cpu {
namespace {

// Inclusive corners: a box from 3 to 5 is 3 pixels wide.
template <typename T>
struct Box {
  T left, top, right, bottom;

  T area() const { return (right - left + 1) * (bottom - top + 1); }
};

template <typename T>
bool overlaps(const Box<T>& a, const Box<T>& b, T threshold) {
  const T width = std::max(std::min(a.right, b.right) - std::max(a.left, b.left) + 1, T(0));
  const T height = std::max(std::min(a.bottom, b.bottom) - std::max(a.top, b.top) + 1, T(0));
  const T shared = width * height;
  return shared / (a.area() + b.area() - shared) > threshold;
}

// A NaN score ranks first, as in torch.sort.
template <typename T>
std::vector<int64_t> descending_order(const T* scores, int64_t count) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::isnan(scores[a]) ? !std::isnan(scores[b]) : scores[a] > scores[b];
  });
  return order;
}

std::vector<std::vector<int64_t>> group_by_label(const std::vector<int64_t>& order, const int64_t* labels) {
  std::vector<std::vector<int64_t>> groups;
  std::unordered_map<int64_t, size_t> group_of;
  for (const int64_t index : order) {
    const auto [found, is_new] = group_of.try_emplace(labels[index], groups.size());
    if (is_new) {
      groups.emplace_back();
    }
    groups[found->second].push_back(index);
  }
  return groups;
}

// members: indices of one class by descending score. A box is kept unless a kept one before it overlaps it.
template <typename T>
void suppress(const std::vector<int64_t>& members, const Box<T>* boxes, T threshold, bool* kept) {
  std::vector<Box<T>> survivors;
  for (const int64_t index : members) {
    const Box<T>& box = boxes[index];
    kept[index] = std::none_of(
        survivors.begin(), survivors.end(), [&](const Box<T>& other) { return overlaps(other, box, threshold); });
    if (kept[index]) {
      survivors.push_back(box);
    }
  }
}

template <typename T>
std::vector<int64_t> kept_indices(
    const T* boxes, const T* scores, const int64_t* labels, int64_t count, double iou_threshold) {
  const std::vector<int64_t> order = descending_order(scores, count);
  const std::vector<std::vector<int64_t>> groups = group_by_label(order, labels);
  const std::unique_ptr<bool[]> kept(new bool[count]);
  torch::stable::parallel_for(0, groups.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      suppress(groups[group], reinterpret_cast<const Box<T>*>(boxes), T(iou_threshold), kept.get());
    }
  });
  std::vector<int64_t> result;
  std::copy_if(order.begin(), order.end(), std::back_inserter(result), [&](int64_t index) { return kept[index]; });
  return result;
}

}  // namespace

Tensor nms(const Tensor& boxes, const Tensor& scores, const Tensor& labels, double iou_threshold) {
  const int64_t count = check_nms(boxes, scores, labels);
  const Tensor flat_boxes = torch::stable::contiguous(boxes), flat_scores = torch::stable::contiguous(scores);
  const Tensor flat_labels = torch::stable::contiguous(labels);
  const std::vector<int64_t> kept = dispatch_floating(boxes, "nms", [&](auto zero) {
    using T = decltype(zero);
    return kept_indices(flat_boxes.const_data_ptr<T>(),
                        flat_scores.const_data_ptr<T>(),
                        flat_labels.const_data_ptr<int64_t>(),
                        count,
                        iou_threshold);
  });
  const std::vector<int64_t> sizes{static_cast<int64_t>(kept.size())};
  const Tensor result = torch::stable::new_empty(labels, {sizes.data(), sizes.size()});
  std::copy(kept.begin(), kept.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

}  // namespace sdpt_ext::cpu
