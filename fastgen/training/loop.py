"""Maximum-likelihood training on Lightning Fabric."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from math import isfinite

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from tqdm import tqdm

from fastgen.data import Dataset, Description, Split, load
from fastgen.metrics import Evaluation, in_unit
from fastgen.models import Model, create_model, list_models, model_class
from fastgen.models.flows import NoSamples
from fastgen.plots.curves import save_curves
from fastgen.training.config import TrainConfig
from fastgen.training.directory import RunDirectory
from fastgen.training.ema import moving_average
from fastgen.training.interrupt import Interrupt
from fastgen.training.order import DataOrder, seed_evaluation, seed_step
from fastgen.training.sample_config import SampleConfig
from fastgen.training.sampling import sample
from fastgen.training.schedule import learning_rate_schedule
from fastgen.training.scores import baseline, summarise_examples, unit


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is no longer finite."""


class TrainingInterrupted(RuntimeError):
    """Ctrl-C or SIGTERM; a checkpoint was written."""


@dataclass(frozen=True)
class Outcome:
    """The likelihood under the averaged weights, and under the trivial baseline, of the whole test split."""

    test: Evaluation
    baseline: Evaluation


def train(config: TrainConfig) -> Outcome:
    """Trains, evaluates and samples a model as ``config`` says, and leaves everything in the run directory.

    Raises ValueError or an OSError for a request that cannot be carried out, before anything is written;
    ``TrainingInterrupted`` after Ctrl-C, with a checkpoint written; ``TrainingDiverged`` where the loss or the
    gradient is not finite, with the last checkpoint kept.
    """
    directory = RunDirectory(config.output)
    if config.resume:
        directory.check_resumable()
        config.check_resumes(TrainConfig.from_json(directory.training.read_bytes(), config.output))
        described = Description.from_json(directory.data.read_bytes())
    else:
        described = None
        directory.check_writable(config.overwrite)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dataset = load(config.data, like=described)
    torch.manual_seed(config.seed)
    network = build(config, dataset)
    fabric = _launch(config)
    with Interrupt() as interrupt:
        return _Training(config, directory, dataset, network, fabric, interrupt).run()


def build(config: TrainConfig, dataset: Dataset) -> Model:
    """The model of ``config`` for the events of ``dataset``. Raises ValueError for what does not fit together."""
    if not dataset.levels and not model_class(config.model).real_numbers:
        allowed = ", ".join(name for name in list_models() if model_class(name).real_numbers)
        raise ValueError(
            f"model must be one of real numbers, as the data {dataset.name!r} are ({allowed}), got {config.model!r}"
        )
    given = {"event_shape": dataset.event_shape, "levels": dataset.levels}
    if fixed := sorted(config.model_overrides.keys() & {*given, "classes"}):
        raise ValueError(
            f"set must leave {', '.join(fixed)} to the data (choose with data and conditional), got "
            f"{', '.join(config.set)}"
        )
    if config.conditional:
        if not dataset.classes:
            raise ValueError(f"conditional must be False for the data {dataset.name!r}, which have no labels, got True")
        given["classes"] = len(dataset.classes)
    return create_model(config.model, config.preset, **given | config.model_overrides)


def _launch(config: TrainConfig) -> Fabric:
    devices, nodes = config.devices, 1
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    if config.batch_size % (devices * nodes):
        raise ValueError(f"batch_size must be a multiple of the {devices * nodes} processes, got {config.batch_size}")
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=config.strategy,
            precision=config.precision,
        )
    except (RuntimeError, MisconfigurationException) as error:
        raise ValueError(
            f"accelerator {config.accelerator!r} with {devices} devices is not available: {error}"
        ) from error
    fabric.launch()
    return fabric


class _Training:
    def __init__(
        self,
        config: TrainConfig,
        directory: RunDirectory,
        dataset: Dataset,
        network: Model,
        fabric: Fabric,
        interrupt: Interrupt,
    ) -> None:
        self.config, self.directory, self.dataset, self.fabric = config, directory, dataset, fabric
        self.interrupt, self.network, self.unit = interrupt, network, unit(dataset)
        self.order = DataOrder(len(dataset.splits["train"]), config.batch_size, config.seed)
        self._initialize()
        optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=config.optimizer.rate,
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
        )
        self.module, self.optimizer = fabric.setup(network, optimizer)
        self.module.mark_forward_method("loss")
        self.average = moving_average(network, config.optimizer.ema)
        self.baseline, self.baseline_name = baseline(dataset, network.baseline)
        self.step = 0

    def _initialize(self) -> None:
        """Sets what the first batch decides."""
        values, labels = self.dataset.splits["train"].batch(self.order.batch(0))
        self.network.initialize(values, labels if self.config.conditional else None)

    def run(self) -> Outcome:
        self._open()
        self._describe()
        bar = tqdm(
            total=self.config.steps,
            initial=self.step,
            desc="train",
            unit="step",
            disable=not (self.config.progress and self.fabric.is_global_zero),
            dynamic_ncols=True,
        )
        with bar:
            self._steps(bar)
        return self._finish()

    def _open(self) -> None:
        config, directory = self.config, self.directory
        if config.resume:
            state = directory.load_checkpoint()
            try:
                self.network.load_state_dict(state["network"])
                self.average.module.load_state_dict(state["average"])
                _load_moments(self.optimizer, state["optimizer"])
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"checkpoint {directory.checkpoint} must be of the model {config.model!r} as this version of "
                    f"fastgen builds it, got another's: {' '.join(str(error).split())}"
                ) from error
            self.step = state["step"]
            self.average.n_averaged.fill_(self.step)
            if self.step > config.steps:
                raise ValueError(
                    f"steps must be at least {self.step}, which the run in {config.output} has reached, got "
                    f"{config.steps}"
                )
        if self.fabric.is_global_zero:
            directory.path.mkdir(parents=True, exist_ok=True)
            directory.remove_partial()
            if config.resume:
                directory.rewind_metrics(self.step)
            else:
                directory.clear()
            directory.write_text(directory.training, config.to_json())
            directory.write_text(directory.data, self.dataset.description.to_json())
        self.fabric.barrier()

    def _describe(self) -> None:
        data, splits = self.dataset, self.dataset.splits
        size = sum(p.numel() for p in self.network.parameters())
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
        shape = " x ".join(map(str, data.event_shape))
        grid = f"{data.levels} levels" if data.levels else "real numbers"
        self.fabric.print(f"data: {data.name}, {shape}, {grid}; {sizes}")
        self.fabric.print(f"model: {self.config.model} ({self.config.preset}), {size:,} weights")
        self.fabric.print(f"trivial baseline, {self.baseline_name}: {self.baseline}")
        if self.step:
            self.fabric.print(f"resumed at step {self.step} of {self.config.steps}")

    def _steps(self, bar: tqdm) -> None:
        config = self.config
        losses: list[float] = []
        started = time.perf_counter()
        schedule = learning_rate_schedule(self.optimizer, config.optimizer, self.step, config.steps)
        while self.step < config.steps:
            (rate,) = schedule.get_last_lr()
            loss, stop = self._update(rate)
            schedule.step()
            self.step += 1
            losses.append(loss)
            bar.update()
            last = self.step == config.steps
            if self.step % config.log_interval == 0 or last:
                train = sum(losses) / len(losses)
                speed = len(losses) / (time.perf_counter() - started)
                progress = self.network.progress()
                self._log({"train": train, "rate": rate, "steps_per_second": round(speed, 3)} | progress)
                shown = [f"{train:.3f} {self.unit}", *(f"{value:g} {name}" for name, value in progress.items())]
                bar.set_postfix_str(", ".join(shown), refresh=False)
                losses, started = [], time.perf_counter()
            if self.step % config.evaluate_interval == 0 or last:
                scored = self._evaluate(self.dataset.splits["validation"], config.evaluate_examples)
                self._log({"validation": scored.value} | _errors(scored))
                if self.fabric.is_global_zero:
                    bar.write(f"step {self.step}: validation {scored}")
                    self._draw_curves()
            if self.step % config.checkpoint_interval == 0 or last or stop:
                self._checkpoint()
            if stop and not last:
                raise TrainingInterrupted(f"stopped at step {self.step} of {config.steps}; a checkpoint was written")

    def _update(self, rate: float) -> tuple[float, bool]:
        """Takes a step; returns the loss in the unit of the data and whether to stop, the same on all processes."""
        config, fabric = self.config, self.fabric
        seed_step(config.seed, self.step, fabric.global_rank)
        indices = self.order.batch(self.step)[fabric.global_rank :: fabric.world_size]
        loss = self.module.loss(self._batch(self.dataset.splits["train"], indices))
        self.optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        norm = fabric.clip_gradients(
            self.module, self.optimizer, max_norm=config.optimizer.clip or float("inf"), error_if_nonfinite=False
        )
        flags = torch.stack([loss.detach().double(), loss.new_tensor(self.interrupt.requested, dtype=torch.float64)])
        mean, stop = fabric.all_reduce(flags, reduce_op="mean").tolist()
        if not (isfinite(mean) and isfinite(norm)):
            raise TrainingDiverged(
                f"step {self.step}: loss {mean}, gradient norm {float(norm)}, learning rate {rate:.2e}; "
                f"no weights were changed, and the last checkpoint in {config.output} is kept"
            )
        self.optimizer.step()
        self.average.update_parameters(self.network)
        return in_unit(-self.dataset.in_own_units(-mean), self.dataset.dimensions, self.unit), stop > 0

    def _batch(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        values, labels = self.fabric.to_device(split.batch(indices))
        return values, labels if self.config.conditional else None

    def _evaluate(self, split: Split, limit: int | None = None) -> Evaluation:
        count = len(split) if limit is None else min(limit, len(split))
        mine = torch.arange(self.fabric.global_rank, count, self.fabric.world_size)
        scores = torch.zeros(count, dtype=torch.float64, device=self.fabric.device)
        model = self.average.module
        model.refresh()
        seed_evaluation(self.config.seed, self.fabric.global_rank)
        with torch.no_grad():
            for part in mine.split(self.config.batch_size):
                scores[part] = model.score(*self._batch(split, part)).double()
        whole = self.fabric.all_reduce(scores, reduce_op="sum").cpu()
        summary = summarise_examples(self.dataset, split, torch.arange(count), whole)
        return replace(summary, estimates=model.estimates())

    def _log(self, values: dict[str, float]) -> None:
        if self.fabric.is_global_zero:
            self.directory.append_metrics({"step": self.step, **values})

    def _draw_curves(self) -> None:
        rows = self.directory.read_metrics()
        save_curves(self.directory.curves, rows, self.baseline.value, f"baseline: {self.baseline_name}", self.unit)

    def _checkpoint(self) -> None:
        if self.fabric.is_global_zero:
            self.directory.save_checkpoint(
                {
                    "step": self.step,
                    "network": self.network.state_dict(),
                    "average": self.average.module.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                }
            )
            self.directory.save_model(self.average.module)
        self.fabric.barrier()

    def _finish(self) -> Outcome:
        test = self._evaluate(self.dataset.splits["test"])
        self._log({"test": test.value, "baseline": self.baseline.value} | _errors(test))
        self.fabric.print(f"test {test.report}\nbaseline {self.baseline}, {self.baseline_name}")
        if self.config.samples != 0 and self.fabric.is_global_zero:
            try:
                drawn = sample(SampleConfig(self.config.output, self.config.samples, progress=self.config.progress))
                self.fabric.print(f"samples: {', '.join(map(str, drawn.files))}")
            except NoSamples as error:
                self.fabric.print(f"no samples: {error}")
        self.fabric.barrier()
        return Outcome(test, self.baseline)


def _load_moments(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """The optimizer's state of every parameter; its rates stay as the run's config says.

    Raises ValueError where a parameter has another state than AdamW's; or as ``load_state_dict``.
    """
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        parameters = group["params"]
        group.clear()
        group |= settings | {"params": parameters}
        for parameter, held in ((p, optimizer.state[p]) for p in group["params"] if p in optimizer.state):
            if parameter.shape == (1,):  # a scalar in older versions, LipSwish's
                moments = {name: held[name] for name in ("exp_avg", "exp_avg_sq") if isinstance(held.get(name), Tensor)}
                held |= {name: value.reshape(1) for name, value in moments.items() if not value.dim()}
            shapes = {name: value.shape for name, value in held.items() if isinstance(value, Tensor)}
            if shapes != {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}:
                raise ValueError("the optimizer's state must have the shape of its parameter, got another")


def _errors(scored: Evaluation) -> dict[str, float]:
    """Returns what is logged beside the mean, by name."""
    errors = {"standard_error": scored.standard_error}
    if scored.divergence is not None:
        errors |= {"kl": scored.divergence.nats, "kl_standard_error": scored.divergence.standard_error}
    return errors
