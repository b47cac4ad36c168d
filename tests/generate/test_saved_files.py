"""Files of samplers and states are data: a digest tells of flipped bytes, and every field is checked before any work.

Files that are made on purpose carry a right digest: anybody can compute it.
"""

from __future__ import annotations

import json
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from torch import nn

import fastgen
from fastgen.generate.contexts import ContextLayout
from fastgen.generate.files.tensor_file import read_tensor_file, write_tensor_file
from tests.generate.compiled import FAST, case, sampler


@pytest.fixture
def saved(tmp_path):
    """Files of a sampler with a context and of one of its states, each with its tensors and description."""
    compiled = sampler("wavenet_mixture")
    state = compiled.start(2, seed=7, context=case("wavenet_mixture").contexts(2), log_prob=True)
    compiled.save(tmp_path / "program")
    compiled.advance(state, 9).save(tmp_path / "state")
    return {kind: (tmp_path / kind, *read_tensor_file(tmp_path / kind, kind)) for kind in ("program", "state")}


def read(kind: str, path):
    return (
        fastgen.Sampler.load(path, machine=FAST) if kind == "program" else sampler("wavenet_mixture").load_state(path)
    )


# ---- damage


@pytest.mark.parametrize("kind", ["program", "state"])
def test_every_flipped_bit_is_told(kind, saved):
    path = saved[kind][0]
    whole = path.read_bytes()
    for at in [*np.random.default_rng(0).integers(len(whole), size=40).tolist(), 0, 8, len(whole) - 1]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(
            ValueError, match=r"is damaged: its content|is no safetensors file|must ha|must hold"
        ) as told:
            read(kind, path)
        assert "\n" not in str(told.value)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is no safetensors file"):
        read(kind, path)


@pytest.mark.parametrize("kind", ["program", "state"])
@pytest.mark.parametrize("version", [None, "1", "2", "4", "three"])
def test_another_format_version_is_told(kind, version, saved):
    path, tensors, description = saved[kind]
    metadata = {kind: json.dumps(description)} | ({} if version is None else {"format_version": version})
    save_file(tensors, path, metadata)
    got = "none" if version is None else f"'{version}'"
    with pytest.raises(
        ValueError, match=rf"must have format_version 6, got {got}: .* save it again with this one"
    ) as told:
        read(kind, path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["program", "state"])
@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "1" * 5000, "null"])
def test_a_description_that_is_none_is_told(kind, text, saved, monkeypatch):
    path, tensors, _ = saved[kind]
    monkeypatch.setattr(
        "fastgen.generate.files.tensor_file.json.dumps", lambda value: text if value == {} else repr(value)
    )
    write_tensor_file(path, kind, tensors, {})
    with pytest.raises(ValueError, match=r"the description of the .* must be (JSON|a JSON object), got"):
        read(kind, path)


# ---- samplers


WRONG_SAMPLERS = {
    "event_shape": [None, 60, [], [0], [-3], [1.5], ["60"], [True], [1 << 41], [1, 2, 3, 4], [[60]], {}],
    "head": [None, 3, {}, {"kind": []}, {"kind": "categorical"}, {"kind": "categorical", "levels": 1 << 40},
             {"kind": "categorical", "levels": "4"}, {"kind": "gaussian", "more": 1},
             {"kind": "bernoulli", "to_input": 3},
             {"kind": "categorical", "levels": 2, "to_input": ["a", 1]}, {"kind": "gaussian", "min_log_scale": "x"},
             {"kind": "categorical", "levels": 2, "to_input": [float("nan"), 1]}],
    "order": [None, 3, "raster", "spiral", [0, 0], [1 << 70], [0.5], [[1], [0, 1]], {}],
    "weights": [None, "float16", 3, []],
    "predicts": [None, "previous", True],
    "start": [None, "0", float("nan"), 10**400, True, [1]],
    "context": [3, [], {}, {"structure": "x"}, {"structure": []}, {"structure": ["dict"]}, {"structure": ["dict", [3]]},
                {"structure": ["tensor", [1, -1], "float32"]}, {"structure": ["tensor", [1, 1 << 62], "float32"]},
                {"structure": ["tensor", [1], "load"]}, {"structure": ["tensor", [], "float32"]},
                {"structure": ["defaultdict", [["class", ["tensor", [1], "int64"]]]]}, {"structure": None, "more": 1},
                {"structure": ["dict", [[[], None]]]}],
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG_SAMPLERS)
def test_every_field_of_a_sampler_is_checked(field, saved):
    path, tensors, description = saved["program"]
    for value in WRONG_SAMPLERS[field]:
        write_tensor_file(path, "program", tensors, description | {field: value})
        with pytest.raises(ValueError, match="holds a sampler that cannot be used: ") as told:
            read("program", path)
        assert "\n" not in str(told.value), value
    for changed in ({k: v for k, v in description.items() if k != field}, description | {field + "s": 1}):
        write_tensor_file(path, "program", tensors, changed)
        with pytest.raises(ValueError, match=f"missing or not known: {field}"):
            read("program", path)


@pytest.mark.parametrize(
    "name", ["header", "instructions", "computes", "draws", "operations", "operation_numbers", "weights"]
)
def test_every_tensor_of_a_sampler_is_checked(name, saved):
    path, tensors, description = saved["program"]
    for tensor in (None, tensors[name].to(torch.int16), tensors[name][None], tensors[name][..., None], torch.zeros(())):
        changed = {k: v for k, v in tensors.items() if k != name} | ({} if tensor is None else {name: tensor})
        write_tensor_file(path, "program", changed, description)
        with pytest.raises(ValueError, match=rf"{name}|operation_numbers"):
            read("program", path)


class Listens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.listen = nn.Conv1d(1, 4, 1), nn.Linear(3, 4)

    def forward(self, x, context):
        given = context["c"][0] if isinstance(context["c"], tuple) else context["c"]
        return self.mix(nn.functional.pad(x[:, None], (1, 0))[..., :-1]) + self.listen(given)[..., None]


def listening(example) -> fastgen.Sampler:
    head = fastgen.heads.Categorical(4, to_input="unit")
    return fastgen.Sampler(Listens(), (9,), head, order="time", example_context=example, machine=FAST, threads=1)


@pytest.mark.parametrize("kind", [dict, OrderedDict])
@pytest.mark.parametrize("nested", [False, True])
def test_a_context_of_dicts_lists_and_tuples_comes_back(kind, nested, tmp_path):
    def context(n: int):
        given = torch.arange(3.0 * n).view(n, 3)
        return kind({"c": (given, [given]) if nested else given})

    compiled = listening(context(1))
    compiled.save(tmp_path / "file")
    loaded = fastgen.Sampler.load(tmp_path / "file", machine=FAST, threads=1)
    assert loaded.request.layout.structure == compiled.request.layout.structure
    assert torch.equal(loaded.sample(3, context=context(3)), compiled.sample(3, context=context(3)))


def test_a_context_of_another_class_is_refused_at_saving():
    """robustness_load_imports_module: a class is a name, and a name would have to be imported."""
    for structure in (
        namedtuple("Pair", "c")(torch.zeros(1, 3)),
        {("c",): torch.zeros(1)},
        [[torch.zeros(1).to(torch.complex64)]],
    ):
        with pytest.raises(NotImplementedError, match="a sampler's file takes contexts"):
            ContextLayout(structure).to_config()


def test_loading_imports_nothing_that_a_file_names(tmp_path, monkeypatch):
    """robustness_load_imports_module"""
    (tmp_path / "named_by_the_file.py").write_text("raise SystemExit('code ran')\ndef f(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    listening({"c": torch.zeros(1, 3)}).save(tmp_path / "file")
    tensors, description = read_tensor_file(tmp_path / "file", "program")
    factory = {"default_factory_module": "named_by_the_file", "default_factory_name": "f", "dict_context": ["c"]}
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = {"type": "collections.defaultdict", "context": factory, "children_spec": [leaf]}
    for structure in (json.dumps([1, spec]), [1, spec], spec):
        write_tensor_file(
            tmp_path / "file", "program", tensors, description | {"context": {"structure": structure, "free": []}}
        )
        with pytest.raises(ValueError, match="context must be"):
            fastgen.Sampler.load(tmp_path / "file", machine=FAST)


# ---- states


WRONG_STATES = {
    "seed": ["seven", None, [1], 1.5, -1, 2**63, 2**64, True],
    "step": [-5, 10**6, 2.0, None, "3", True],
    "threads": [None, 0, 2**40, "1", 1.0],
    "ahead": [None, 1, "yes"],
    "top_k": ["x", -1, 3, 1.5, None],
    "top_p": [0, 0.5, "x", None],
    "temperature": [0, -1.0, "x", None, float("nan"), float("inf"), True, 10**400],
    "position0": [1, 1.5, -1, None, 2**70],
    "program": [None, "", 3],
}


@pytest.mark.parametrize("field", WRONG_STATES)
def test_every_number_of_a_state_is_checked(field, saved):
    """robustness_states_accepted"""
    path, tensors, numbers = saved["state"]
    for value in WRONG_STATES[field]:
        write_tensor_file(path, "state", tensors, numbers | {field: value})
        with pytest.raises(ValueError, match="holds a state that this sampler cannot go on from: ") as told:
            read("state", path)
        assert "\n" not in str(told.value), value
    for changed in ({k: v for k, v in numbers.items() if k != field}, numbers | {"more": 1}):
        write_tensor_file(path, "state", tensors, changed)
        with pytest.raises(ValueError, match=r"missing or not known|of another program"):
            read("state", path)


@pytest.mark.parametrize("name", ["state", "samples", "levels", "context.0", "context.1", "log_prob"])
def test_every_tensor_of_a_state_is_checked(name, saved):
    path, tensors, numbers = saved["state"]
    assert (resumed := sampler("wavenet_mixture").advance(read("state", path), 60)).levels.max() > 0
    assert torch.equal(resumed.run.seed == 7 and resumed.levels[0], sampler("wavenet_mixture").sample(
        2, seed=7, context=case("wavenet_mixture").contexts(2))[0])  # fmt: skip
    good = tensors[name]
    wrong = [good.half(), good[:1], good[..., :0], good[None], torch.zeros(())]
    wrong += [] if name == "log_prob" else [None]
    wrong += {"samples": [good - 100, good + (1 << 48)], "levels": [good + 0.5, good - 300, good * torch.nan]}.get(
        name, []
    )
    wrong += [torch.full_like(good, torch.inf)] if name.startswith("context") else []
    for tensor in wrong:
        changed = {k: v for k, v in tensors.items() if k != name} | ({} if tensor is None else {name: tensor})
        write_tensor_file(path, "state", changed, numbers)
        with pytest.raises(ValueError, match="cannot go on from: "):
            read("state", path)
    write_tensor_file(path, "state", tensors | {"more": torch.zeros(1)}, numbers)
    with pytest.raises(ValueError, match="tensors are missing or not known: more"):
        read("state", path)


def test_a_state_of_another_sampler_is_refused():
    """robustness_states_accepted: of another program, and of the same program with another event."""
    state = sampler("masked_stack").start(1)
    for other in ("causal_unet", "gaussian"):
        with pytest.raises(ValueError, match="state must be one of this sampler's, got one of another program"):
            sampler(other).advance(state, 3)
    with pytest.raises(ValueError, match="state must be what start, fork or load_state returned, got Tensor"):
        sampler("masked_stack").advance(state.levels, 3)
    made = case("wavenet")
    short, long = (made.sampler(event_shape=(n,)) for n in (300, 400))
    assert short.program.fingerprint == long.program.fingerprint
    with pytest.raises(ValueError, match="state must be one of this sampler's"):
        long.advance(short.start(1), 3)


def test_a_state_goes_on_with_a_loaded_sampler(tmp_path):
    compiled = sampler("masked_stack")
    compiled.save(tmp_path / "file")
    loaded = fastgen.Sampler.load(tmp_path / "file", machine=FAST, threads=1)
    state = loaded.advance(compiled.advance(compiled.start(2, seed=3), 20), compiled.steps)
    assert torch.equal(state.levels, compiled.sample(2, seed=3))


# ---- NumPy's numbers


def test_numpy_numbers_are_taken_where_numbers_are():
    """robustness_numpy_integers"""
    compiled = sampler("wavenet")
    wanted = compiled.sample(3, seed=5, top_k=4, top_p=0.75, temperature=0.5, threads=1)
    for integer in (np.int64, np.int32, np.uint8):
        for real in (np.float64, np.float32):
            options = {"top_k": integer(4), "top_p": real(0.75), "temperature": real(0.5), "threads": integer(1)}
            assert torch.equal(compiled.sample(integer(3), seed=integer(5), **options), wanted)
    state = compiled.advance(compiled.start(np.int64(3), seed=np.int64(5), first_sample=np.int64(2)), np.int64(7))
    assert (state.step, state.run.seed) == (7, 5)
    assert (type(state.step), type(state.run.seed)) == (int, int)
    assert state.fork(np.array([0, 2])).batch == 2
    assert next(compiled.stream(np.int64(1), np.int64(8), np.int64(8), seed=np.int64(1))).shape == (1, 8)
    shape = tuple(np.int64(n) for n in compiled.event_shape)
    assert type(case("wavenet").sampler(event_shape=shape).event_shape[0]) is int
    heads = fastgen.heads
    assert heads.DiscretizedLogisticMixture(np.int64(2), np.int32(9), np.int64(3)).coupled == 3
    assert heads.Categorical(np.int64(4)).config() == heads.Categorical(4).config()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint8, torch.int16, torch.uint32, torch.uint64])
def test_known_levels_of_any_integer_dtype(dtype):
    """robustness_numpy_integers"""
    compiled, known = sampler("wavenet"), case("wavenet").levels(1)
    mask = torch.ones_like(known, dtype=torch.bool)
    assert torch.equal(compiled.sample(1, known=known.to(dtype), known_mask=mask), known)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": np.bool_(True)}, "the number of samples must be an integer"),
        ({"n": True}, "the number of samples must be an integer"),
        ({"seed": True}, "seed must be an integer"),
        ({"top_k": True}, "top_k must be .*, got True"),
        ({"top_p": True}, "top_p must be .*, got True"),
        ({"temperature": True}, "temperature must be a finite number of float32, got True"),
        ({"temperature": 10**400}, "temperature must be a finite number"),
        ({"threads": 2**40}, r"threads must be an integer in 1 \.\. 1024, got 1099511627776"),
        ({"threads": np.bool_(True)}, "threads must be an integer"),
    ],
)
def test_what_is_no_number_is_refused(options, message):
    """robustness_numpy_integers"""
    with pytest.raises(ValueError, match=message):
        sampler("wavenet").sample(**{"n": 1} | options)


def test_the_file_says_what_it_is(saved):
    """Others may read the description without fastgen."""
    with safe_open(saved["program"][0], "pt") as file:
        metadata = file.metadata()
    assert metadata["format_version"] == "6"
    assert json.loads(metadata["program"])["event_shape"] == [60]
    assert load_file(saved["program"][0])["weights"].dtype == torch.float32
