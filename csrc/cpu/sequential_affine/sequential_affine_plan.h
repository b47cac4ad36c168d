// Affine autoregressive flows, feature by feature: the order of the units, and the steps of a sweep.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cpu/sequential_affine/sequential_affine.h"

namespace fastgen {
namespace {

using Step = SequentialAffineStep;

constexpr std::int64_t kBlock = 8;     // degrees whose rows take what is finished before them in one product

// Rows of a panel; a group of them is the features, a hidden layer, or the outputs.
struct Rows {
  std::int64_t begin, end;
  std::int64_t count() const { return end - begin; }
};

// A linear map between two groups of rows, and where its weight begins in the parameters.
struct Map {
  std::int64_t inputs, outputs, weight;
  std::int64_t bias() const { return weight + inputs * outputs; }
};

// The groups in order of degrees.
class Layout {
 public:
  Layout(const std::int64_t* degrees, const std::vector<std::int64_t>& widths) : features_(widths[0]) {
    std::int64_t weight = 0;
    for (std::size_t group = 0; group < widths.size(); ++group) {
      add_group(degrees, widths[group]);
      degrees += widths[group];
      const std::int64_t outputs = group + 1 < widths.size() ? widths[group + 1] : 2 * features_;
      maps_.push_back({widths[group], outputs, weight});
      weight += (widths[group] + 1) * outputs;
    }
    const std::int64_t first = static_cast<std::int64_t>(units_.size());
    std::vector<std::int64_t> begins(features_ + 2, first);
    for (std::int64_t d = 1; d <= features_; ++d) {
      units_.insert(units_.end(), {units_[d - 1], features_ + units_[d - 1]});
      begins[d + 1] = first + 2 * d;
    }
    begins_.push_back(begins);
    parameters_ = weight;
  }

  std::int64_t features() const { return features_; }
  std::int64_t parameters() const { return parameters_; }
  std::int64_t rows() const { return static_cast<std::int64_t>(units_.size()); }
  std::int64_t groups() const { return static_cast<std::int64_t>(begins_.size()); }
  const std::vector<Map>& maps() const { return maps_; }
  const std::vector<std::int64_t>& units() const { return units_; }
  std::int64_t unit(std::int64_t row) const { return units_[row]; }
  // The rows of a group with degrees from `low` to below `high`.
  Rows of(std::int64_t group, std::int64_t low, std::int64_t high) const {
    return {begins_[group][std::min(low, features_ + 1)], begins_[group][std::min(high, features_ + 1)]};
  }
  Rows all(std::int64_t group) const { return of(group, 0, features_ + 1); }

 private:
  void add_group(const std::int64_t* degrees, std::int64_t width) {
    std::vector<std::int64_t> order(width), begins(features_ + 2);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return degrees[a] < degrees[b]; });
    const std::int64_t first = static_cast<std::int64_t>(units_.size());
    for (std::int64_t d = 0, unit = 0; d <= features_ + 1; ++d) {
      while (unit < width && degrees[order[unit]] < d) ++unit;
      begins[d] = first + unit;
    }
    units_.insert(units_.end(), order.begin(), order.end());
    begins_.push_back(begins);
  }

  std::int64_t features_, parameters_ = 0;
  std::vector<std::int64_t> units_;                // of every row, its number in its group
  std::vector<std::vector<std::int64_t>> begins_;  // of every group, by degree
  std::vector<Map> maps_;
};

// The steps of a sweep, and the weights that they take, packed.
class Sweep {
 public:
  Sweep(const Layout& layout, std::int64_t tile, bool up) : layout_(layout), tile_(tile), up_(up) {
    const std::int64_t degrees = layout.features() + 1, blocks = (degrees + kBlock - 1) / kBlock;
    for (std::int64_t i = 0; i < blocks; ++i) {
      const std::int64_t low = (up ? blocks - 1 - i : i) * kBlock, high = std::min(low + kBlock, degrees);
      up ? add_up(low, high) : add_down(low, high);
    }
  }

  SequentialAffineSweep steps() const { return {steps_.data(), static_cast<std::int64_t>(steps_.size())}; }

  // How many numbers the packed weights are.
  std::int64_t weights() const { return weights_; }

  // Writes the weights of one step among them.
  template <typename T>
  void pack(std::int64_t i, const T* parameters, T* packed) const {
    const Step& step = steps_[i];
    if (step.kind != Step::product) return;
    const Map& map = layout_.maps()[maps_[i]];
    const T* weight = parameters + map.weight;
    const std::int64_t *to = &layout_.units()[step.to], *from = &layout_.units()[step.from];
    const std::int64_t to_stride = up_ ? 1 : map.inputs, from_stride = up_ ? map.inputs : 1;
    packed += step.weights;
    for (std::int64_t k = 0; k < step.count; ++k, packed += step.rows) {
      for (std::int64_t r = 0; r < step.rows; ++r) packed[r] = weight[to[r] * to_stride + from[k] * from_stride];
    }
  }

 private:
  void add(Step step, std::int64_t map = -1) {
    steps_.push_back(step);
    maps_.push_back(map);
  }

  void add_product(std::int64_t map, Rows to, Rows from) {
    if (!from.count()) return;
    const std::int64_t tiles = (to.count() + tile_ - 1) / tile_;
    for (std::int64_t i = 0; i < tiles; ++i) {
      const std::int64_t begin = to.begin + to.count() * i / tiles, end = to.begin + to.count() * (i + 1) / tiles;
      add({Step::product, begin, end - begin, from.begin, from.count(), weights_}, map);
      weights_ += (end - begin) * from.count();
    }
  }

  void add_pointwise(Step::Kind kind, Rows rows) {
    if (rows.count()) add({kind, rows.begin, rows.count(), 0, 0, 0});
  }

  void add_down(std::int64_t low, std::int64_t high) {
    const std::int64_t last = layout_.groups() - 1;
    for (std::int64_t group = 1; group <= last; ++group) {
      add_product(group - 1, layout_.of(group, low, high), layout_.of(group - 1, 0, low));
    }
    for (std::int64_t d = low; d < high; ++d) {
      add_product(last - 1, layout_.of(last, d, d + 1), layout_.of(last - 1, low, d));
      if (d > 0) add({Step::draw, d - 1, 0, 0, 0, 0});
      for (std::int64_t group = 1; group < last; ++group) {
        add_product(group - 1, layout_.of(group, d, d + 1), layout_.of(group - 1, low, d + 1));
        add_pointwise(Step::activate, layout_.of(group, d, d + 1));
      }
    }
  }

  void add_up(std::int64_t low, std::int64_t high) {
    const std::int64_t last = layout_.groups() - 1, end = layout_.features() + 1;
    for (std::int64_t group = 0; group < last; ++group) {
      add_product(group, layout_.of(group, low, high), layout_.of(group + 1, high, end));
    }
    for (std::int64_t d = high - 1; d >= low; --d) {
      for (std::int64_t group = last - 1; group >= 0; --group) {
        add_product(group, layout_.of(group, d, d + 1), layout_.of(group + 1, group == last - 1 ? d + 1 : d, high));
        if (group > 0) add_pointwise(Step::derive, layout_.of(group, d, d + 1));
      }
      if (d > 0) add({Step::undraw, d - 1, 0, 0, 0, 0});
    }
  }

  const Layout& layout_;
  std::int64_t tile_, weights_ = 0;
  bool up_;
  std::vector<Step> steps_;
  std::vector<std::int64_t> maps_;  // of every step
};

}  // namespace
}  // namespace fastgen
