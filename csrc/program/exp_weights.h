// The weights of a softmax, in double.
#pragma once

namespace fastgen {

// weights[i] = exp(logits[i] - top), 0 where that is below 2^-1022; returns their sum. No logit may exceed top. Every
// instruction set computes the same bits.
double exp_weights(const double* logits, int count, double top, double* weights);

// The first index whose cumulated weight exceeds uniform * total, where total is the sum of the weights (not 0); past
// the end, by rounding, the last of non-zero weight.
int inverse_cdf(const double* weights, int count, double total, double uniform);

// The sum of the weights, in the order in which exp_weights takes it.
double sum_weights(const double* weights, int count);

}  // namespace fastgen
