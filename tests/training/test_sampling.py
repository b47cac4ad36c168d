from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from fastgen.data import DataConfig, load, mulaw
from fastgen.training import loop
from fastgen.training.sampling import SampleConfig, load_run, sample


@pytest.fixture(scope="module")
def images(configure, tmp_path_factory) -> Path:
    config = configure(tmp_path_factory.mktemp("runs") / "images", steps=3, conditional=True)
    loop.train(config)
    return config.output


@pytest.fixture(scope="module")
def speech(configure, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    waveform = (8000 * np.sin(np.arange(600) / 5)).astype(np.int16)
    np.savez(folder / "x.npz", waveform=waveform, offsets=np.arange(0, 601, 60), sample_rate=8000)
    config = configure(
        folder / "run",
        data=DataConfig(str(folder / "x.npz"), window=60),
        model="wavenet",
        set=("layers_per_cycle=3", "residual_channels=8", "gate_channels=16", "skip_channels=8", "head_channels=8"),
        steps=3,
    )
    loop.train(config)
    return config.output


def test_samples_are_those_of_the_textbook_loop(images, tmp_path):
    drawn = sample(SampleConfig(images, count=6, seed=3, naive=True, output=tmp_path, progress=False))
    assert drawn.comparison.unexplained == 0
    assert drawn.comparison.samples == 6
    assert [path.name for path in drawn.files] == ["samples.png", "samples_naive.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn.files)


def test_log_prob_is_the_models(images, tmp_path):
    drawn = sample(SampleConfig(images, count=6, output=tmp_path, temperature=0.7, progress=False))
    model = load_run(images).model
    inputs, context = model.head.to_input(drawn.values), torch.arange(6) % 4
    with torch.no_grad():
        single = model.head.log_prob(model(inputs, context).double(), drawn.values)
        exact = model.head.log_prob(model.double()(inputs.double(), context), drawn.values)
    elements = drawn.values[0].numel()
    # float32 rounds each of the summed terms, of which none is larger than the sum
    assert (drawn.log_prob - exact).abs().max() <= 2 * (
        single - exact
    ).abs().max() + elements * 2**-24 * exact.abs().max()


def test_a_label_is_the_context_of_every_sample(images, tmp_path):
    by_name = sample(SampleConfig(images, count=3, label="2", output=tmp_path, progress=False)).values
    model = load_run(images).model
    assert torch.equal(by_name, model.sample(3, seed=0, context=torch.full((3,), 2)))


def test_known_rows_are_kept(images, tmp_path):
    drawn = sample(SampleConfig(images, count=5, known_rows=3, output=tmp_path, progress=False))
    test = load(load_run(images).config.data).splits["test"].values[torch.arange(5) % 4].long()
    assert torch.equal(drawn.values[:, :, :3], test[:, :, :3])
    assert not torch.equal(drawn.values[:, :, 3:], test[:, :, 3:])


def test_audio_is_written_and_a_prompt_is_continued(speech, tmp_path):
    wave = 0.3 * np.sin(np.arange(20) / 3)
    soundfile.write(tmp_path / "prompt.wav", wave, 8000, subtype="FLOAT")
    out = tmp_path / "out"
    drawn = sample(SampleConfig(speech, count=2, prompt=tmp_path / "prompt.wav", output=out, progress=False))
    wanted = torch.from_numpy(mulaw.encode(wave.astype(np.float32))).long()
    assert torch.equal(drawn.values[:, :20], wanted.expand(2, 20))
    assert [path.name for path in drawn.files] == ["samples.png", "samples.wav"]
    samples, rate = soundfile.read(out / "samples.wav")
    assert rate == 8000
    assert np.abs(samples[:60] - mulaw.decode(drawn.values[0].numpy())).max() <= 2**-15


def test_test_recordings_are_continued(speech, tmp_path):
    drawn = sample(SampleConfig(speech, count=2, prompt_seconds=0.005, output=tmp_path, progress=False))
    test = load(load_run(speech).config.data).splits["test"].values
    assert torch.equal(drawn.values[:, :40], test[torch.arange(2) % len(test), :40].long())


@pytest.mark.parametrize(
    ("which", "changed", "message"),
    [
        ("speech", {"label": "3"}, "was trained without labels"),
        ("speech", {"known_rows": 2}, r"known_rows must be 0 for audio \(give prompt_seconds\), got 2"),
        ("speech", {"prompt_seconds": 1.0}, r"the prompt must have 1 to 59 samples, as the .*, got 8000"),
        ("images", {"label": "9"}, "label must be one of 0, 1, 2, 3, got '9'"),
        ("images", {"known_rows": 8}, "known_rows must be at most 7 for images of 8 rows, got 8"),
        ("images", {"temperature": 0.0}, r"temperature must be .*, got 0\.0"),
        ("images", {"top_p": 1.5}, r"top_p must be .*, got 1\.5"),
        ("images", {"naive": True, "weights": "int8"}, "weights must be 'float32' with naive, .*, got 'int8'"),
    ],
)
def test_requests_that_do_not_fit_are_refused_before_any_work(request, tmp_path, which, changed, message):
    run = request.getfixturevalue(which)
    with pytest.raises(ValueError, match=message):
        sample(SampleConfig(run, count=2, output=tmp_path / "out", progress=False, **changed))
    assert not (tmp_path / "out").exists()
