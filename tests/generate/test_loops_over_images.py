"""Loops over the rows, the columns and the diagonals of an image, and over time with a convolution within a step."""

from __future__ import annotations

import pytest
import torch

import fastgen
from fastgen.generate import heads
from fastgen.generate.ir.instructions import STATE
from fastgen.generate.ir.program import STREAM
from tests.generate.compiled import Case, case
from tests.generate.public_image_loops import DiagonalNetwork, conv_lstm_pitches
from tests.generate.seeded import built


@pytest.mark.parametrize("name", ["diagonal_lstm", "columns_gru", "conv_lstm"])
def test_the_program_does_not_grow_with_the_image(name):
    sizes = []
    for shape in ((1, 8, 9), (1, 9, 12)):
        compiled = fastgen.Sampler(case(name).module, shape, case(name).head, "raster")
        program = compiled.program
        sizes.append([len(program.instructions), len(program.operands), len(program.weights)])
        assert torch.equal(compiled.sample(2, seed=1), compiled.sample_naive(2, seed=1))
    assert sizes[0] == sizes[1]


def test_what_is_carried_along_diagonals_is_kept_for_a_row():
    program = fastgen.Sampler(case("diagonal_lstm").module, (1, 9, 8), case("diagonal_lstm").head, "raster").program
    assert max(buffer.positions for buffer in program.buffers if buffer.where == STATE) <= 2 * 8 + 1


def test_a_recurrence_against_the_order_within_a_row_is_refused_by_its_name():
    module = built(lambda: DiagonalNetwork(both=True))
    with pytest.raises(
        fastgen.generate.CompileError, match=r"the loop at right \(.*stays unrolled, .* against the order"
    ):
        fastgen.Sampler(module, (1, 8, 8), heads.Categorical(5, to_input="symmetric"), "raster")


def test_a_convolution_along_the_channels_of_a_step_has_a_program_of_any_length():
    compiled = Case(*conv_lstm_pitches()).sampler()
    assert compiled.program.steps >= STREAM
    assert torch.equal(compiled.sample(3, seed=2), compiled.sample_naive(3, seed=2))
