// Attention of a worker: the keys that a query sees are listed once for all samples and heads, then each head weighs its values.
#include <algorithm>
#include <cmath>

#include "common/check.h"
#include "cpu/machine/exec/worker.h"

namespace fastgen {
namespace {

// A channel of a row.
const void* channels_at(const float* row, std::int64_t channel, Format format) {
  constexpr std::int64_t bytes[kFormats] = {4, 2, 1};
  return reinterpret_cast<const char*>(row) + channel * bytes[static_cast<int>(format)];
}

}  // namespace

void Worker::attend(const PlannedCompute& planned, const Cell* cells, std::int64_t count, const Share& share,
                    const GenerationBatch& run, std::int64_t step) {
  const PlannedAttend& own = plan_.attends[planned.attend];
  const std::int64_t repeats = own.heads / own.groups;
  const std::int64_t head0 = share.units.begin * repeats, head1 = std::min(share.units.end, planned.units) * repeats;
  if (head0 >= head1) return;
  for (std::int64_t c = 0; c < count; ++c) {
    list_keys(own, cells[c], run);
    list_rows(own.key, run, step, key_rows_);
    list_rows(own.value, run, step, value_rows_);
    resolve(planned.operands.data(), planned.operands.size(), cells[c], run, step, addresses_.data());
    for (std::int64_t sample = share.samples.begin; sample < share.samples.end; ++sample) {
      if (!goes_on(key_count_ * (head1 - head0) * (own.depth + own.width), step)) return;
      for (std::int64_t head = head0; head < head1; ++head) attend_head(own, head, cells[c], sample, step);
    }
  }
}

void Worker::list_keys(const PlannedAttend& planned, Cell cell, const GenerationBatch& run) {
  keys_.clear();
  key_count_ = 0;
  const KeySet& set = plan_.key_sets[position_of(planned.keys, cell)];
  for (std::int64_t r = set.run0; r < set.run1; ++r) {
    const KeyRun& keys = plan_.key_runs[r];
    const std::int64_t first = std::max(keys.low, position_of(keys.start, cell));
    std::int64_t stop = std::min(keys.high, position_of(keys.end, cell));
    for (const BoundOperand* operand : {&planned.key, &planned.value}) {
      if (operand->where == kContext) stop = std::min(stop, run.contexts[operand->positions].positions);
    }
    if (first >= stop) continue;
    keys_.push_back({first, (stop - first + keys.step - 1) / keys.step, keys.step});
    key_count_ += keys_.back().count;
  }
}

// The rows of a buffer behind the keys: runs of them at equal distances, cut where a ring begins anew.
void Worker::list_rows(const BoundOperand& operand, const GenerationBatch& run, std::int64_t step, std::vector<KeyRows>& rows) {
  rows.clear();
  for (const KeySpan& keys : keys_) {
    const std::int64_t advance = operand.column_stride * keys.step;  // positions from one key to the next
    for (std::int64_t done = 0; done < keys.count;) {
      Address address;
      resolve(&operand, 1, {0, keys.first + done * keys.step}, run, step, &address);
      std::int64_t here = keys.count - done;
      if (operand.wraps && operand.where != kContext) {
        const std::int64_t position = operand.position_of({0, keys.first + done * keys.step}) % operand.positions;
        here = advance > 0 ? std::min(here, (operand.positions - position + advance - 1) / advance) : 1;
      }
      rows.push_back({address.base, address.sample_stride, advance * operand.stride, here});
      done += here;
    }
  }
}

void Worker::attend_head(const PlannedAttend& planned, std::int64_t head, Cell cell, std::int64_t sample, std::int64_t step) {
  const std::int64_t group = head / (planned.heads / planned.groups);
  const Address &from = addresses_[planned.query], &to = addresses_[planned.out];
  const float* query = from.base + sample * from.sample_stride + head * planned.depth;
  float* out = to.base ? to.base + sample * to.sample_stride + head * planned.width : nullptr;
  if (!out) return;
  std::fill_n(out, planned.width, 0.0f);
  if (key_count_ == 0) return;
  const std::size_t count = static_cast<std::size_t>(key_count_), padded = (count + kTile - 1) / kTile * kTile;
  const std::size_t needed = padded * static_cast<std::size_t>(planned.registers);
  if (scores_.size() < needed) scores_.resize(needed, 0.0f);
  float* scores = scores_.data();
  std::size_t done = 0;
  for (const KeyRows& rows : key_rows_) {
    kernels_.products[static_cast<int>(planned.key_format)](
        scores + done, query, static_cast<std::size_t>(planned.depth),
        channels_at(rows.base + sample * rows.sample_stride, group * planned.depth, planned.key_format),
        rows.stride * static_cast<std::ptrdiff_t>(sizeof(float)), static_cast<std::size_t>(rows.count));
    done += static_cast<std::size_t>(rows.count);
  }
  std::fill(scores + count, scores + padded, 0.0f);
  if (planned.key_format == Format::int8) scale_scores(planned, key_rows_, planned.key_scales + group, sample);
  score(planned, planned.scores, head, cell, sample);
  if (planned.softmax) {
    const float top = kernels_.fold(kAmax, scores, count);
    if (planned.least && !(top >= *planned.least)) {
      failure_.report(step, text("the greatest score of attention must be ", *planned.least,
                                 " or more, where keys are masked with a finite number, got ", top, "; mask with float('-inf')"));
    }
    kernels_.lanes[kAddC](scores, scores, scores, scores, padded, -top, 0.0f);
    kernels_.lanes[kExp](scores, scores, scores, scores, padded, 0.0f, 0.0f);
    const float sum = kernels_.fold(kSum, scores, count);
    kernels_.lanes[kMulC](scores, scores, scores, scores, padded, 1.0f / sum, 0.0f);
  }
  score(planned, planned.weighting, head, cell, sample);
  if (planned.value_format == Format::int8) scale_scores(planned, value_rows_, planned.value_scales + group, sample);
  done = 0;
  for (const KeyRows& rows : value_rows_) {
    kernels_.weigh[static_cast<int>(planned.value_format)](
        out, static_cast<std::size_t>(planned.width), scores + done,
        channels_at(rows.base + sample * rows.sample_stride, group * planned.width, planned.value_format),
        rows.stride * static_cast<std::ptrdiff_t>(sizeof(float)), static_cast<std::size_t>(rows.count));
    done += static_cast<std::size_t>(rows.count);
  }
}

void Worker::scale_scores(const PlannedAttend& planned, const std::vector<KeyRows>& rows, std::int64_t scales,
                          std::int64_t sample) {
  const std::size_t padded = (static_cast<std::size_t>(key_count_) + kTile - 1) / kTile * kTile;
  float *scores = scores_.data(), *factors = scores + static_cast<std::size_t>(planned.scale_register) * padded, *to = factors;
  for (const KeyRows& some : rows) {
    kernels_.gather(to, some.base + sample * some.sample_stride + scales, some.stride, static_cast<std::size_t>(some.count));
    to += some.count;
  }
  std::fill(to, factors + padded, 0.0f);
  kernels_.lanes[kMul](scores, scores, factors, scores, padded, 0.0f, 0.0f);
}

void Worker::store_rounded(const PlannedOperation& store, Format format, float* row, const float* from, std::int64_t lane0,
                           std::int64_t lanes) {
  if (format == Format::bfloat16) {
    kernels_.round_bfloat16(reinterpret_cast<std::uint16_t*>(row) + lane0, from, static_cast<std::size_t>(lanes));
    return;
  }
  std::int8_t* to = reinterpret_cast<std::int8_t*>(row);  // of all lanes: an instruction that stores int8 is not cut
  for (std::int64_t lane = 0; lane < lanes; lane += store.c) {
    row[store.dst + lane / store.c] = kernels_.round_int8(to + lane, from + lane, static_cast<std::size_t>(store.c));
  }
}

// Runs a program over the keys on register 0.
void Worker::score(const PlannedAttend& planned, const std::vector<PlannedOperation>& operations, std::int64_t head, Cell cell,
                   std::int64_t sample) {
  const std::size_t padded = (static_cast<std::size_t>(key_count_) + kTile - 1) / kTile * kTile;
  for (const PlannedOperation& operation : operations) {
    float* dst = scores_.data() + operation.dst * padded;
    if (operation.opcode == kLoad) {
      const ScoreInput& input = planned.inputs[operation.a];
      const Address& address = addresses_[input.operand];
      const std::int64_t own =
          input.offset + input.row_stride * cell.row + input.column_stride * cell.column + input.head_stride * head;
      const float* base = address.base + sample * address.sample_stride + own;
      float* to = dst;
      for (const KeySpan& keys : keys_) {
        kernels_.gather(to, base + keys.first * input.key_stride, keys.step * input.key_stride,
                        static_cast<std::size_t>(keys.count));
        to += keys.count;
      }
      std::fill(to, dst + padded, 0.0f);
      continue;
    }
    const float* a = scores_.data() + operation.a * padded;
    const float* b = operation.arguments > 1 ? scores_.data() + operation.b * padded : a;
    const float* c = operation.arguments > 2 ? scores_.data() + operation.c * padded : a;
    kernels_.lanes[operation.opcode](dst, operation.arguments > 0 ? a : dst, operation.arguments > 0 ? b : dst,
                                     operation.arguments > 0 ? c : dst, padded, operation.x, operation.y);
  }
}

}  // namespace fastgen
