from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from fastgen.data import SPLITS, DataConfig, load, mulaw
from fastgen.data.audio import windowed


def _images(folder: Path, names: list[str], shape: tuple[int, ...] = (6, 6)) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    written = {}
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        written[name] = generator.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(written[name]).save(path)
    return written


def _tone(path: Path, rate: int = 8000, seconds: float = 0.1, channels: int = 1) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate, subtype="PCM_16")
    return wave


def _every(data) -> torch.Tensor:
    return torch.cat([data.splits[name].values for name in SPLITS])


def test_images_come_back_pixel_for_pixel(tmp_path):
    written = _images(tmp_path, [f"{i}.png" for i in range(7)])
    data = load(DataConfig(str(tmp_path)))
    assert (data.kind, data.event_shape, data.levels, data.classes) == ("image", (1, 6, 6), 256, ())
    assert {image.numpy().tobytes() for image in _every(data)} == {image.tobytes() for image in written.values()}


def test_colour_images_are_channels_first(tmp_path):
    written = _images(tmp_path, [f"{i}.png" for i in range(5)], (6, 4, 3))
    data = load(DataConfig(str(tmp_path)))
    assert data.event_shape == (3, 6, 4)
    wanted = {image.transpose(2, 0, 1).tobytes() for image in written.values()}
    assert {image.numpy().tobytes() for image in _every(data)} == wanted


def test_size_crops_the_centre_and_colour_is_converted(tmp_path):
    for i in range(4):
        Image.fromarray(np.full((8 + i, 16), 100, np.uint8)).save(tmp_path / f"{i}.png")
    data = load(DataConfig(str(tmp_path), size=4, colour="rgb", levels=16))
    assert data.event_shape == (3, 4, 4)
    assert (_every(data) == 100 * 16 // 256).all()


def test_pixels_of_16_bits_give_their_upper_eight(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (4, 6, 6)).astype(np.uint16)
    for i, image in enumerate(deep):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    data = load(DataConfig(str(tmp_path)))
    assert data.event_shape == (1, 6, 6)
    assert {image.numpy().tobytes() for image in _every(data)} == {(i // 256).astype(np.uint8).tobytes() for i in deep}
    assert load(DataConfig(str(tmp_path), colour="rgb")).event_shape == (3, 6, 6)
    Image.fromarray(np.zeros((6, 6), np.float32)).save(tmp_path / "4.tif")
    with pytest.raises(ValueError, match=r"4.tif cannot be read as an image: pixels must have 8 or 16 bits, got 32"):
        load(DataConfig(str(tmp_path)))


def test_what_is_hidden_is_not_read(tmp_path):
    _images(tmp_path, ["0.png", "1.png", "2.png", ".3.png", ".cache/4.png"])
    _tone(tmp_path / ".cache" / "a.wav")
    assert sum(map(len, load(DataConfig(str(tmp_path))).splits.values())) == 3


def test_class_folders_become_labels(tmp_path):
    _images(tmp_path, [f"{name}/{i}.png" for name in ("cat", "ant") for i in range(5)])
    data = load(DataConfig(str(tmp_path)))
    assert data.classes == ("ant", "cat")
    assert sorted(torch.cat([data.splits[name].labels for name in SPLITS]).tolist()) == [0] * 5 + [1] * 5


@pytest.mark.parametrize("name", ["x.png", "x.gif"])
def test_a_palette_of_greys_is_grey(tmp_path, name):
    """reports_grey_palette"""
    generator = np.random.default_rng(0)
    for i in range(5):
        grey = Image.fromarray(generator.integers(0, 16, (6, 6), dtype=np.uint8) * 17)
        grey.quantize(16).save(tmp_path / f"{i}{name}")
    assert load(DataConfig(str(tmp_path))).event_shape == (1, 6, 6)
    coloured = grey.quantize(16)
    coloured.putpalette([0, 0, 0, 255, 0, 0] + [9, 9, 9] * 14)
    coloured.save(tmp_path / f"5{name}")
    assert load(DataConfig(str(tmp_path))).event_shape == (3, 6, 6)


def test_photos_are_turned_as_they_are_shown(tmp_path):
    """reports_grey_palette: the EXIF orientation"""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4), dtype=np.uint8)
    for i in range(5):
        photo = Image.fromarray(pixels)
        photo.getexif()[0x0112] = 6  # turn clockwise by 90 degrees
        photo.save(tmp_path / f"{i}.png", exif=photo.getexif())
    data = load(DataConfig(str(tmp_path)))
    assert data.event_shape == (1, 4, 6)
    assert all((image[0].numpy() == np.rot90(pixels, -1)).all() for image in _every(data))


def test_split_folders_are_kept_and_absent_ones_cut_from_train(tmp_path):
    written = _images(tmp_path, [f"train/{i}.png" for i in range(20)] + [f"test/{i}.png" for i in range(3)])
    data = load(DataConfig(str(tmp_path)))
    assert [len(data.splits[name]) for name in SPLITS] == [18, 2, 3]
    held_out = {written[f"test/{i}.png"].tobytes() for i in range(3)}
    assert {image.numpy().tobytes() for image in data.splits["test"].values} == held_out


def test_folders_refuse(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data source must be one of digits, two_moons, .*, got '.*"):
        load(DataConfig(str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"must hold images \(.png, .* or audio files \(.wav, .*, got neither"):
        load(DataConfig(str(tmp_path)))
    _images(tmp_path, ["0.png", "1.png", "2.png"])
    _images(tmp_path, ["3.png"], (7, 6))
    with pytest.raises(ValueError, match=r"images of different sizes \(6 x 6 and 6 x 7.*3.png.*give a size"):
        load(DataConfig(str(tmp_path)))
    (tmp_path / "3.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"3.png cannot be read as an image"):
        load(DataConfig(str(tmp_path)))
    _images(tmp_path, ["3.png", "a/4.png"])
    with pytest.raises(ValueError, match="has no class"):
        load(DataConfig(str(tmp_path)))
    _tone(tmp_path / "a.wav")
    with pytest.raises(ValueError, match="must hold files of one kind, got images"):
        load(DataConfig(str(tmp_path)))
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"must be a folder, an \.npz or a \.csv file, got a \.txt file"):
        load(DataConfig(str(tmp_path / "x.txt")))


def test_wav_files_are_mixed_and_companded(tmp_path):
    for i in range(4):
        wave = _tone(tmp_path / f"{i}.wav", channels=2)
    data = load(DataConfig(str(tmp_path), window=500))
    assert (data.kind, data.event_shape, data.levels, data.sample_rate) == ("audio", (500,), 256, 8000)
    wanted = torch.from_numpy(mulaw.encode(np.round(wave * 32768) / 32768)[:500])
    assert all(torch.equal(window, wanted) for window in _every(data))


@pytest.mark.parametrize("suffix", ["flac", "aiff", "ogg"])
def test_other_kinds_of_audio_are_read(tmp_path, suffix):
    for i in range(4):
        wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(800) / 8000)
        soundfile.write(tmp_path / f"{i}.{suffix}", wave, 8000)
    data = load(DataConfig(str(tmp_path), window=800))
    assert (data.kind, data.sample_rate) == ("audio", 8000)
    clips = mulaw.decode(_every(data).numpy())
    assert len(clips) == 4
    assert np.abs(clips - wave).max() < 0.05


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac", "mp3"])
def test_audio_that_is_cut_short_is_refused(tmp_path, suffix):
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.{suffix}", np.random.default_rng(0).uniform(-1, 1, 20000), 8000)
    assert load(DataConfig(str(tmp_path), window=800)).kind == "audio"
    whole = (tmp_path / f"1.{suffix}").read_bytes()
    (tmp_path / f"1.{suffix}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"1\.{suffix} (is cut short: it declares|cannot be read as audio)"):
        load(DataConfig(str(tmp_path), window=800))


def test_a_wav_from_a_pipe_declares_no_length(tmp_path):
    for i in range(4):
        _tone(tmp_path / f"{i}.wav")
        whole = bytearray((tmp_path / f"{i}.wav").read_bytes())
        whole[4:8] = whole[40:44] = b"\xff" * 4
        (tmp_path / f"{i}.wav").write_bytes(whole)
    assert _every(load(DataConfig(str(tmp_path), window=800))).shape == (4, 800)


def test_wav_files_are_resampled(tmp_path):
    rates = (8000, 16000, 22050, 44100)
    for rate in rates:
        _tone(tmp_path / f"{rate}.wav", rate)
    with pytest.raises(ValueError, match=r"sample rates differ .*give a sample rate"):
        load(DataConfig(str(tmp_path), window=800))
    data = load(DataConfig(str(tmp_path), window=800, sample_rate=8000))
    clips = mulaw.decode(_every(data).numpy())
    spectra = np.abs(np.fft.rfft(clips[:, :800]))
    assert (spectra.argmax(1) == 44).all()  # 440 Hz of 800 samples at 8 kHz


def test_unreadable_wav_is_named(tmp_path):
    for i in range(3):
        _tone(tmp_path / f"{i}.wav")
    soundfile.write(tmp_path / "1.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"1.wav holds samples that are not finite"):
        load(DataConfig(str(tmp_path)))
    (tmp_path / "1.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"1.wav cannot be read as audio"):
        load(DataConfig(str(tmp_path)))


def test_windows_are_whole_padded_with_silence_and_never_shared_between_splits():
    recordings = [np.full(length, value) for length, value in ((25, 0.1), (9, 0.3), (4, 0.5))]
    parts = {name: np.array([i]) for i, name in enumerate(SPLITS)}
    data = windowed("x", recordings, np.array([2, 1, 0]), ("a", "b", "c"), parts, 8000, 10, 256)
    one, two, three = (int(mulaw.encode(np.array([v]))[0]) for v in (0.1, 0.3, 0.5))
    assert data.splits["train"].values.tolist() == [[one] * 10] * 2
    assert data.splits["train"].labels.tolist() == [2, 2]
    assert data.splits["validation"].values.tolist() == [[two] * 9 + [mulaw.silence()]]
    assert data.splits["test"].values.tolist() == [[three] * 4 + [mulaw.silence()] * 6]
