from __future__ import annotations

import numpy as np
import pytest
import torch

from fastgen.nn.elementwise.sos_polynomial import SOSPolynomial


@pytest.mark.parametrize("degree", [1, 2, 5])
def test_it_is_the_integral_of_the_sum_of_squares(degree):
    transform = SOSPolynomial(3, degree, min_derivative=0.01).double()
    parameters = torch.randn(7, 1, transform.parameters_per_element, dtype=torch.float64)
    x = 2 * torch.randn(7, 1, dtype=torch.float64)
    y, log_det = transform(x, parameters)
    for i in range(7):
        offset, coefficients = parameters[i, 0, 0].item(), parameters[i, 0, 1:].reshape(3, -1).numpy()
        polynomials = [np.polynomial.Polynomial(c) + 1 for c in coefficients]
        derivative = 0.01 + 0.99 / 3 * sum(p**2 for p in polynomials)
        wanted = offset + derivative.integ()(x[i, 0].item())
        torch.testing.assert_close(y[i, 0], torch.tensor(wanted, dtype=torch.float64))
        torch.testing.assert_close(log_det[i], torch.tensor(np.log(derivative(x[i, 0].item())), dtype=torch.float64))


def test_parameters_of_zero_are_the_identity():
    transform = SOSPolynomial()
    x = torch.linspace(-1e3, 1e3, 11)[:, None]
    y, log_det = transform(x, x.new_zeros(11, 1, transform.parameters_per_element))
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_det, torch.zeros(11))


def test_the_log_derivative_is_finite_where_its_square_is_not():
    transform = SOSPolynomial(2, 8)
    x, parameters = torch.full((3, 1), 1e4), torch.randn(3, 1, transform.parameters_per_element)
    found = transform(x, parameters)[1]
    torch.testing.assert_close(found, transform.double()(x.double(), parameters.double())[1].float())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"polynomials": 0}, "polynomials must be an integer of at least 1, got 0"),
        ({"degree": 0}, "degree must be an integer of at least 1, got 0"),
        ({"min_derivative": 0.0}, "min_derivative must be greater than 0 and less than 1, got 0.0"),
        ({"min_derivative": 1.0}, r"min_derivative must be greater than 0 and less than 1, got 1\.0"),
    ],
)
def test_wrong_numbers_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        SOSPolynomial(**arguments)
