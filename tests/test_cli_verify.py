"""``fastgen verify``: runs and networks in files; its output, its picture, its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen import cli
from fastgen.models import create_model

ROOT = Path(__file__).parents[1]
SOURCE = """
import torch, fastgen
from torch import nn
from beside import channels

masked = nn.Sequential(fastgen.nn.MaskedConv2d(1, channels, 3, mask="A"), nn.Tanh(), nn.Conv2d(channels, 5, 1))
leaky = nn.Conv2d(1, 5, 3, padding=1)

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.label, self.out = nn.Embedding(5, 4), nn.Embedding(3, 4), nn.Linear(4, 5)

    def forward(self, x, label):
        return self.out(torch.tanh(self.embed(x)) + self.label(label)[:, None])

class Decides(nn.Module):
    def forward(self, x):
        return masked(x) * (1 if x.sum() < 0 else 2)

def turned(output):
    return output.transpose(1, 2)

def label():
    return torch.tensor([1])

def fails():
    raise KeyError("no such thing")
"""


@pytest.fixture
def file(tmp_path) -> str:
    (tmp_path / "beside.py").write_text("channels = 6\n")
    (tmp_path / "own.py").write_text(SOURCE)
    return str(tmp_path / "own.py")


IMAGE = ["--event-shape", "1", "5", "4", "--levels", "5"]


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Runs the command as a shell does, in the folder of the file."""
    folder = Path(arguments[0].partition(".py:")[0]).parent
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fastgen", "verify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_a_causal_network_in_a_file(file, tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib, which the zoo extra installs")
    done = run(f"{file}:masked", *IMAGE, "--plot", str(tmp_path / "seen.png"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Sequential, event (1, 5, 4), order 'raster': passed\n")
    assert done.stdout.endswith(f"{tmp_path / 'seen.png'}\n")
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")


def test_a_leaky_network_in_a_file(file):
    done = run(f"{file}:leaky", *IMAGE)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAILED: not causal" in done.stdout
    assert "the output that scores element (0, 0) (step 0) sees itself" in done.stdout


def test_a_class_an_adapter_and_a_context(file, capsys):
    options = ["--levels", "5", "--order", "time", "--predicts", "next", "--adapter", "turned", "--context", "label"]
    assert cli.main(["verify", f"{file}:Tokens", "--event-shape", "9", *options]) == 0
    assert "Tokens, event (9,), order 'time': passed" in capsys.readouterr().out
    same = [{"next": "same"}.get(option, option) for option in options]
    assert cli.main(["verify", f"{file}:Tokens", "--event-shape", "9", *same]) == 1


def test_a_network_that_does_not_compile_has_status_1(file, capsys):
    assert cli.main(["verify", f"{file}:Decides", *IMAGE]) == 1
    shown = capsys.readouterr().out
    assert "causal, but NOT COMPILED" in shown
    assert "not compiled: torch.export does not take Decides" in shown


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("nothing", IMAGE, "network must name something in "),
        ("fails", IMAGE, "network must be made by fails(), got KeyError in line 28: 'no such thing'"),
        ("turned", IMAGE, "network must be made by turned(), got TypeError"),
        ("channels", IMAGE, "network must name a torch.nn.Module, or what makes one, got a int"),
        ("masked", [*IMAGE, "--adapter", "nothing"], "adapter must name something in "),
        ("masked", ["--event-shape", "1", "5", "4"], "a categorical head's arguments are missing or not known: levels"),
        ("masked", [*IMAGE, "--samples", "0"], "samples must be an integer, 1 or more, got 0"),
        ("masked", [*IMAGE, "--head", "bernoulli"], "a bernoulli head's arguments are missing or not known: levels"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(file, name, options, said, capsys):
    assert cli.main(["verify", f"{file}:{name}", *options]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"fastgen: {said}")
    assert shown.err.count("\n") == 1


def test_a_file_that_does_not_run_is_said_with_its_line(tmp_path, capsys):
    path = tmp_path / "wrong.py"
    path.write_text("import math\nx = math.nothing\n")
    assert cli.main(["verify", f"{path}:x", *IMAGE]) == 1
    assert f"fastgen: {path} must run, got AttributeError in line 2: " in capsys.readouterr().err
    path.write_text("import no_such_library_anywhere\n")
    assert cli.main(["verify", f"{path}:x", *IMAGE]) == 1
    assert "got ModuleNotFoundError in line 1" in capsys.readouterr().err
    assert cli.main(["verify", f"{tmp_path / 'missing.py'}:x", *IMAGE]) == 1
    assert "network must be in a file that exists, got " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["own.py:masked", "--levels", "5"], "event_shape must be given for a network in a file"),
        (["runs/digits", "--levels", "5"], "network must be FILE.py:NAME where levels is"),
        (["own.py:masked", *IMAGE, "--plot", "no/such/folder/x.png"], "plot must be a file in a folder that exists"),
    ],
)
def test_options_that_do_not_go_together(arguments, said, capsys):
    assert cli.main(["verify", *arguments]) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def trained(folder: Path, model: str, source: str, *options: str) -> str:
    common = ["--batch-size", "8", "--accelerator", "cpu", "--samples", "0", "--no-progress", "--threads", "1"]
    arguments = ["train", "--output", str(folder), "--data.source", source, "--model", model, "--steps", "2", *common]
    assert cli.main([*arguments, *options]) == 0
    return str(folder)


def test_a_trained_run(tmp_path, capsys):
    small = ["--set", "layers=2", "channels=8", "kernel_size=3", "head_channels=8", "--conditional"]
    folder = trained(tmp_path / "run", "gated_pixelcnn", "digits", *small)
    assert cli.main(["verify", folder, "--samples", "2"]) == 0
    assert "GatedPixelCNN, event (1, 8, 8), order 'raster': passed" in capsys.readouterr().out


def test_a_run_of_a_flow_is_refused(tmp_path, capsys):
    folder = trained(tmp_path / "run", "nice", "two_moons")
    assert create_model("nice").family == "flow"
    assert cli.main(["verify", folder]) == 1
    assert "network must be autoregressive, got a nice, which is a flow" in capsys.readouterr().err
    assert cli.main(["verify", str(tmp_path / "none")]) == 1
    assert "is no run directory" in capsys.readouterr().err
