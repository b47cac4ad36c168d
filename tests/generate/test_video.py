"""Videos: frames are drawn one after the other, by programs that grow with none of their sizes."""

from __future__ import annotations

import pytest
import torch

import fastgen
from fastgen.generate import heads
from fastgen.generate.ir.instructions import ROW
from fastgen.generate.ir.program import Program
from fastgen.generate.ir.program_checks import check_program
from fastgen.generate.machines.cpu import CpuMachine
from fastgen.generate.orders import make_order
from tests.generate import public_videos as videos
from tests.generate.compiled import MACHINES, case, sampler
from tests.generate.seeded import built


def shape_of(program) -> list[tuple]:
    """What must not depend on the sizes of the event: when instructions run, of how many lanes and terms."""
    return [
        (
            i.when,
            i.level,
            i.loop,
            i.body.parts,
            i.body.lanes,
            i.body.segment1 - i.body.segment0,
            i.domain.row_stride > 0,
        )
        for i in program.computes
    ]


@pytest.mark.parametrize(
    ("make", "head", "sizes"),
    [
        (videos.PixelCnn3d, heads.Categorical(4), [(1, 3, 4, 9), (1, 5, 6, 11)]),
        (videos.PaddedStacks, heads.Categorical(3), [(1, 3, 4, 9), (1, 4, 5, 11)]),
        (videos.VideoPixelNetwork, heads.Categorical(3), [(1, 6, 4, 5), (1, 7, 6, 7)]),
        (videos.Decoder3d, heads.Bernoulli("symmetric"), [(2, 4, 4, 6), (2, 6, 8, 10)]),
    ],
)
def test_the_program_grows_with_no_size(make, head, sizes):
    network, programs = built(make), []
    for size in sizes:
        made = fastgen.Sampler(network, size, head, threads=1)
        programs.append(made.program)
        assert torch.equal(made.sample(1, seed=2), made.sample_naive(1, seed=2))
    assert shape_of(programs[0]) == shape_of(programs[1])
    assert len(programs[0].weights) == len(programs[1].weights)
    assert len(programs[0].operands) == len(programs[1].operands)


def test_a_frame_is_encoded_once_and_as_a_whole():
    program = sampler("video_pixel_network").program
    whole = [i for i in program.computes if i.when == ROW and i.domain.row_stride == 0]
    assert len(whole) == 9
    assert all(i.domain.rows == 3 and i.domain.frame_stride in (0, 3) for i in whole)
    assert max(b.positions for b in program.buffers) == 2 * 12  # two frames


@pytest.mark.parametrize("name", ["pixelcnn_3d", "video_pixel_network", "video_strides"])
def test_known_frames_are_a_prompt(name):
    made, shape = sampler(name), case(name).event_shape
    contexts = case(name).contexts(2)
    levels, mask = case(name).levels(2), torch.zeros(2, *shape, dtype=torch.bool)
    mask[:, :, :2] = True
    drawn = made.sample(2, seed=5, known=levels, known_mask=mask, context=contexts)
    assert torch.equal(drawn[:, :, :2], levels[:, :, :2])
    assert torch.equal(drawn, made.sample_naive(2, seed=5, known=levels, known_mask=mask, context=contexts))


def test_the_steps_are_frames_rows_pixels_and_channels():
    order = make_order("raster-subpixel", (2, 3, 4, 5))
    assert (order.length, order.row_length, order.has_frames) == (120, 10, True)
    frame, row, column, channel = 2, 1, 3, 1
    position = (frame * 4 + row) * 5 + column
    assert order.steps[channel, position] == position * 2 + channel
    assert order.coordinates(position) == (frame, row, column)


def test_a_permutation_of_a_videos_positions_is_drawn_in_it():
    network = built(lambda: videos.CausalConv3d(1, 2, sees_itself=False))
    forwards = fastgen.Sampler(network, (1, 2, 2, 3), heads.Categorical(2), threads=1)
    listed = fastgen.Sampler(network, (1, 2, 2, 3), heads.Categorical(2), order=list(range(12)), threads=1)
    assert torch.equal(forwards.sample(4, seed=0), listed.sample(4, seed=0))


def test_what_looks_at_the_next_frame_is_refused_with_the_element_that_it_sees():
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    with pytest.raises(fastgen.generate.CompileError, match=r"not causal for order 'raster'"):
        fastgen.Sampler(network, (1, 3, 4, 5), heads.Categorical(2))


def test_a_stream_of_frames_is_refused():
    with pytest.raises(ValueError, match=r"stream needs order .*; this sampler has order 'raster'"):
        next(iter(sampler("pixelcnn_3d").stream(1, 10, 5)))


def test_explain_says_how_many_frames_are_seen():
    told = str(sampler("pixelcnn_3d").explain())
    seen = "2 frames back, 3 rows above, 2 columns left, 2 columns right, 0 rows below"
    assert f"of the output at (2, 3, 2): {seen}; 56 of the 57 earlier elements" in told


def test_a_crafted_program_does_not_attend_in_other_frames():
    made = sampler("video_transformer")
    program = Program.from_tensors(made.program.to_tensors())
    program.attends[0].domain.frame1, program.attends[0].domain.frame_stride = 2, 1
    with pytest.raises(ValueError, match=r"instructions\[2\]: it attends in other frames than frame 0"):
        check_program(program, made.head, made.order, [])
    if "cpu" in MACHINES:
        with pytest.raises(ValueError, match=r"instructions\[2\]: attends in the frames 0 \.\. 2"):
            CpuMachine(program, made.head)


@pytest.mark.parametrize(
    ("head", "channels", "layouts"),
    [
        (heads.Categorical(4), 2, [(8, 2, 3, 4), (2, 4, 2, 3, 4)]),
        (heads.Bernoulli(), 2, [(2, 2, 3, 4)]),
        (heads.DiscretizedLogisticMixture(2), 3, [(20, 2, 3, 4)]),
        (heads.Gaussian(2), 2, [(12, 2, 3, 4)]),
    ],
)
def test_layouts_of_outputs(head, channels, layouts):
    shape = (channels, 2, 3, 4)
    for layout in layouts:
        arranged = head.arrange(torch.arange(24.0).expand(5, *layout[:-3], 24).reshape(5, *layout), shape)
        assert arranged.shape[:2] == (5, 24)
        assert torch.equal(arranged[0, :, 0, 0], torch.arange(24.0))
    with pytest.raises(ValueError, match="output must have shape"):
        head.arrange(torch.zeros(5, *layouts[0][:-1], 5), shape)
