from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fastgen.data import SPLITS, DataConfig, load, mulaw

SHARED = Path(__file__).parents[3] / "shared" / "data"


def _save(folder: Path, **arrays: np.ndarray) -> str:
    np.savez(folder / "x.npz", **arrays)
    return str(folder / "x.npz")


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(12, 5, 4), (12, 5, 4, 1), (12, 5, 4, 3)])
def test_images_layouts(tmp_path, shape):
    images = _pixels(*shape)
    data = load(DataConfig(_save(tmp_path, images=images, labels=np.arange(12) % 3)))
    channels = shape[3] if len(shape) == 4 else 1
    assert data.event_shape == (channels, 5, 4)
    assert data.classes == ("0", "1", "2")
    for name in SPLITS:
        for levels, label in zip(data.splits[name].values, data.splits[name].labels, strict=True):
            origin = [
                i for i in range(12) if np.array_equal(levels.permute(1, 2, 0).numpy(), images[i].reshape(5, 4, -1))
            ]
            assert [i % 3 for i in origin] == [label]


def test_declared_splits_are_kept(tmp_path):
    train, test = _pixels(20, 4, 4), _pixels(5, 4, 4)
    path = _save(
        tmp_path, train_images=train, test_images=test, train_labels=np.zeros(20, int), test_labels=np.ones(5, int)
    )
    data = load(DataConfig(path))
    assert [len(data.splits[name]) for name in SPLITS] == [18, 2, 5]
    assert torch.equal(data.splits["test"].values[:, 0], torch.from_numpy(test))
    assert data.splits["test"].labels.tolist() == [1] * 5


def test_size_and_colour(tmp_path):
    data = load(
        DataConfig(_save(tmp_path, images=np.full((6, 8, 8, 3), 200, np.uint8)), size=4, colour="grey", levels=2)
    )
    assert data.event_shape == (1, 4, 4)
    assert all((split.values == 1).all() for split in data.splits.values())


def test_splits_that_are_all_declared_may_be_small(tmp_path):
    pixels = _pixels(4, 2, 2)
    path = _save(tmp_path, train_images=pixels[:2], validation_images=pixels[2:3], test_images=pixels[3:])
    assert [len(load(DataConfig(path)).splits[name]) for name in SPLITS] == [2, 1, 1]


def test_speech_is_resampled(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4 * 1600) / 16000)
    path = _save(tmp_path, waveform=tone, offsets=np.arange(0, 6401, 1600), sample_rate=np.array(16000))
    assert load(DataConfig(path, window=1600)).sample_rate == 16000
    data = load(DataConfig(path, window=800, sample_rate=8000))
    assert (data.sample_rate, data.event_shape) == (8000, (800,))
    clips = mulaw.decode(torch.cat([data.splits[name].values for name in SPLITS]).numpy())
    assert len(clips) == 4
    assert (np.abs(np.fft.rfft(clips)).argmax(1) == 44).all()  # 440 Hz of 800 samples at 8 kHz
    with pytest.raises(ValueError, match="sample_rate must be a positive number of Hz, got 0"):
        load(DataConfig(path, sample_rate=0))


def test_speech(tmp_path):
    waveform = np.random.default_rng(0).integers(-32768, 32768, 90, dtype=np.int16)
    path = _save(
        tmp_path,
        waveform=waveform,
        offsets=np.arange(0, 91, 30),
        speakers=np.array([0, 1, 0]),
        speaker_names=np.array(["ann", "bob"]),
    )
    with pytest.raises(ValueError, match="does not say its sample rate"):
        load(DataConfig(path, window=10))
    data = load(DataConfig(path, window=10, sample_rate=8000, label="speakers"))
    assert data.classes == ("ann", "bob")
    whole = torch.cat([data.splits[name].values for name in SPLITS])
    wanted = mulaw.encode(waveform / 32768).reshape(9, 10)
    assert {w.numpy().tobytes() for w in whole} == {w.tobytes() for w in wanted}


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_wide_integers_are_samples_of_the_fewest_bits_that_hold_them(tmp_path, bits, dtype):
    """reports_npz_kinds: the int16 values of a recording stored as int64 were silence."""
    wave = np.random.default_rng(0).integers(-(1 << bits - 1), 1 << bits - 1, 90)
    wave[:2] = (1 << bits - 1) - 1, -(1 << bits - 1)
    given = {"offsets": np.arange(0, 91, 30), "sample_rate": 8000}
    wide = load(DataConfig(_save(tmp_path, waveform=wave.astype(dtype), **given), window=10))
    exact = load(DataConfig(_save(tmp_path, waveform=wave / float(1 << bits - 1), **given), window=10))
    for name in SPLITS:
        assert torch.equal(wide.splits[name].values, exact.splits[name].values)


@pytest.mark.parametrize("dtype", [">f8", ">f4", np.longdouble, np.float16])
def test_floats_of_another_byte_order_or_width_are_read(tmp_path, dtype):
    """reports_npz_kinds"""
    values = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float16)
    native = load(DataConfig(_save(tmp_path, data=values.astype(np.float64), labels=np.arange(60) % 3)))
    other = load(DataConfig(_save(tmp_path, data=values.astype(dtype), labels=(np.arange(60) % 3).astype(">i2"))))
    for name in SPLITS:
        torch.testing.assert_close(other.splits[name].values, native.splits[name].values)
        assert torch.equal(other.splits[name].labels, native.splits[name].labels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": np.zeros((30, 8, 0), np.uint8)},
            r"images must be at least one of at least 1 x 1 pixels, got \(30, 8, 0\)",
        ),
        (
            {"waveform": np.full(9, 2**40), "offsets": np.array([0, 3, 6, 9]), "sample_rate": 8000},
            r"waveform must have samples of at most .*, got integers from 1099511627776 to 1099511627776",
        ),
        ({"pictures": _pixels(4, 2, 2)}, r"x\.npz must have one of the arrays images, .*, got pictures"),
        (
            {"images": _pixels(4, 2, 2).astype(np.float32)},
            r"images must be uint8 \[N, H, W\] or \[N, H, W, 1 or 3\], got float32 \(4, 2, 2\)",
        ),
        (
            {"images": _pixels(4, 2, 2, 2)},
            r"images must be uint8 \[N, H, W\] or \[N, H, W, 1 or 3\], got uint8 \(4, 2, 2, 2\)",
        ),
        (
            {"images": _pixels(4, 2, 2), "labels": np.zeros(3, int)},
            r"labels must be 4 integers from 0 on, got int64 \(3,\)",
        ),
        (
            {"images": _pixels(4, 2, 2), "labels": np.zeros(4)},
            r"labels must be 4 integers from 0 on, got float64 \(4,\)",
        ),
        (
            {"images": _pixels(4, 2, 2), "labels": np.full(4, 10**9)},
            r"labels must be from 0 to 65535 at most, got 1000000000",
        ),
        (
            {"images": _pixels(2, 2, 2)},
            r"data must have at least 3 examples, .*got 2",
        ),
        ({"images": np.array(3, np.uint8)}, r"arrays must have shape \[N, \.\.\.\], got a single number"),
        (
            {"train_images": _pixels(9, 2, 2), "test_images": _pixels(3, 2, 4)},
            r"the splits must have examples of one shape, got \(2, 2\) and \(2, 4\)",
        ),
        (
            {"waveform": np.zeros(9, np.uint8), "offsets": np.array([0, 9])},
            r"waveform must be signed integers or floats \[samples\], got uint8 \(9,\)",
        ),
        (
            {"waveform": np.zeros((9, 2)), "offsets": np.array([0, 9])},
            r"waveform must be signed integers or floats \[samples\], got float64 \(9, 2\)",
        ),
        ({"waveform": np.full(9, np.nan), "offsets": np.array([0, 9])}, "samples that are not finite"),
        (
            {"waveform": np.zeros(9), "offsets": np.array([0.0, 9.0])},
            r"offsets must be integers \[N \+ 1\], got float64 \(2,\)",
        ),
        ({"waveform": np.zeros(9), "offsets": np.array([0, 9]), "sample_rate": np.ones(2)}, "not say its sample rate"),
        ({"waveform": np.zeros(9, np.int16)}, "has waveform but not offsets"),
        ({"waveform": np.zeros(9, np.int16), "offsets": np.array([0, 5, 3])}, "offsets must increase"),
        ({"waveform": np.zeros(9, np.int16), "offsets": np.array([0, 5, 12])}, "at most 9"),
    ],
)
def test_npz_refuses(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        load(DataConfig(_save(tmp_path, **arrays)))


def test_npz_refuses_what_is_no_archive(tmp_path):
    path = Path(_save(tmp_path, images=_pixels(30, 8, 8)))
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[300] ^= 255
    np.save(tmp_path / "x.npy", np.zeros(3))
    for content in (b"nothing", b"", whole[: len(whole) // 2], bytes(changed), (tmp_path / "x.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz cannot be read as an \.npz archive"):
            load(DataConfig(str(path)))


def test_the_windows_of_spoken_digits_keep_their_speaker():
    path = SHARED / "spoken_digits_8khz.npz"
    if not path.is_file():
        pytest.skip("shared/data/spoken_digits_8khz.npz is not beside this checkout")
    data = load(DataConfig(str(path), window=4096, sample_rate=8000, label="speakers"))
    assert len(data.classes) == 6
    assert sum(len(split) for split in data.splits.values()) >= 3000
    with np.load(path) as archive:
        first = mulaw.encode(archive["waveform"][: archive["offsets"][1]] / 32768)
        speaker = int(archive["speakers"][0])
    padded = np.pad(first[:4096], (0, max(0, 4096 - len(first))), constant_values=mulaw.silence())
    found = [
        int(split.labels[i])
        for split in data.splits.values()
        for i in torch.nonzero((split.values == torch.from_numpy(padded)).all(1)).flatten()
    ]
    assert found == [speaker]
