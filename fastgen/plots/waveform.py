"""Audio as a WAV file and as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def save_wav(path: Path, clips: np.ndarray, sample_rate: int, pause: float = 0.15) -> None:
    """Clips ``[N, T]`` in [-1, 1] one after the other, with ``pause`` seconds between, as 16-bit PCM."""
    import soundfile

    gap = np.zeros(round(pause * sample_rate), np.float32)
    pieces = [piece for clip in clips for piece in (clip, gap)][:-1]
    soundfile.write(path, np.concatenate(pieces), sample_rate, subtype="PCM_16")


def save_waveforms(path: Path, clips: np.ndarray, sample_rate: int) -> None:
    """Waveform and spectrogram of each clip ``[N, T]`` as a PNG."""
    from matplotlib.figure import Figure
    from scipy.signal import spectrogram

    count, length = clips.shape
    figure = Figure(figsize=(9, 1.6 * count + 0.6), layout="constrained", dpi=110)
    axes = figure.subplots(count, 2, squeeze=False)
    seconds = np.arange(length) / sample_rate
    for (wave, picture), clip in zip(axes, clips, strict=True):
        wave.plot(seconds, clip, lw=0.5, color="#336699")
        wave.set(xlim=(0, length / sample_rate), ylim=(-1, 1))
        segment = min(256, max(1, length // 8))
        frequency, time, power = spectrogram(clip, sample_rate, nperseg=segment, noverlap=segment * 3 // 4)
        picture.pcolormesh(
            time, frequency, 10 * np.log10(power + 1e-10), cmap="magma", vmin=-100, vmax=-30, rasterized=True
        )
        picture.set_ylabel("Hz")
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    figure.savefig(path)
