"""How well the search chooses, over many seeds: the real study on a landscape that was fitted to real trials.

    .venv/bin/iconoclast run --config FOLDER/iconoclast-trials-0.toml --out RUN --n-trials 352 --n-startup-trials 352 \\
        --no-prune-trials --max-benign-response-length 1 --seed 7          # FOLDER is that of quality.py
    .venv/bin/python benchmarks/sampling.py RUN --trials 24 --prompts 20 48
    .venv/bin/python benchmarks/sampling.py RUN --trials 190 --prompts 20 100

Two Gaussian processes are fitted to the random trials of RUN: log KL divergence and failure rate (arcsine) by parameters.
A simulated trial has the failures that a binomial draw of its true rate gives on so many prompts, so whatever is
chosen is known for what it is. Failures, KL and hypervolume (up to a KL of 0.2) are the true ones.
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
import torch
from hypervolume import hypervolume
from torch import Tensor

from iconoclast.runs.folder import RunFolder
from iconoclast.runs.trials import search_space
from iconoclast.scores import Bounds, Count, Scores, beaten
from iconoclast.search.objective import Objective
from iconoclast.search.pareto import best_trial, pareto_front
from iconoclast.search.space import EditParameters, FittedParameters, SearchSpace
from iconoclast.search.study import Outcome, Plan, Study

REFERENCE = (1.0, 0.2)
KL_TARGET = 0.1
BENIGN = 64
NOISE = 0.05
"""Relative standard deviation of the KL divergence from one set of prompts to another."""


def features(parameters: EditParameters | FittedParameters, space: SearchSpace) -> list[float]:
    """Where a trial lies, in units of the ranges; what has no effect on it is left in the middle."""
    assert isinstance(parameters, EditParameters), "runs with a fit are not simulated"
    direction, n = parameters.direction, space.layers - 1
    found = [direction.index / n if direction.scope == "global" else 0.65, 2.0 * (direction.scope == "global")]
    found.append(direction.blend if direction.method == "hybrid" else 0.5)
    found += [2.0 * (direction.method == method) for method in space.methods]
    for profile in parameters.profiles.values():
        share = profile.min_weight / profile.max_weight
        found += [profile.max_weight / 1.5, profile.max_weight_position / n, share, profile.min_weight_distance / n]
    return found


class Landscape:
    """A Gaussian process (Matérn 5/2, a length for every feature) of one score, by maximum likelihood."""

    def __init__(self, points: Tensor, values: Tensor) -> None:
        self.mean, self.scale, self.points = values.mean(), values.std(), points
        targets = (values - self.mean) / self.scale
        lengths = torch.full((points.shape[1],), 0.3, dtype=torch.float64, requires_grad=True)
        height, noise = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.0, -2.0))
        optimizer = torch.optim.Adam([lengths, height, noise], lr=0.05)
        for _ in range(250):
            factor = torch.linalg.cholesky(self._covariance(points, lengths, height, noise))
            weights = torch.cholesky_solve(targets[:, None], factor)
            loss = 0.5 * (targets @ weights[:, 0]) + factor.diagonal().log().sum() + 0.02 * (lengths**2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            self._lengths, self._height = lengths.detach(), height.detach()
            inverse = torch.linalg.inv(self._covariance(points, lengths, height, noise))
            self._weights = inverse @ targets
            self.explained = float(1 - ((self._weights / inverse.diagonal()) ** 2).mean() / targets.var())

    def _covariance(self, points: Tensor, lengths: Tensor, height: Tensor, noise: Tensor) -> Tensor:
        return self._kernel(points, points, lengths, height) + (noise.exp() + 1e-6) * torch.eye(len(points)).double()

    def _kernel(self, a: Tensor, b: Tensor, lengths: Tensor, height: Tensor) -> Tensor:
        distance = 5**0.5 * torch.cdist(a / lengths.exp(), b / lengths.exp())
        covariance: Tensor = height.exp() * (1 + distance + distance**2 / 3) * torch.exp(-distance)
        return covariance

    def __call__(self, points: Tensor) -> Tensor:
        values: Tensor = self._kernel(points, self.points, self._lengths, self._height) @ self._weights
        return values * self.scale + self.mean


class Simulation:
    """What a model might measure of trials, and what they really are: (failure rate, KL divergence)."""

    def __init__(self, run: RunFolder) -> None:
        settings = run.settings()
        self.space = search_space(settings, run.read_baseline().layers)
        trials = Study.read(run.journal, self.space).trials()
        points = self._points([trial.parameters for trial in trials])
        rates = torch.tensor([trial.scores.failures.rate for trial in trials], dtype=torch.float64)
        divergences = torch.tensor([trial.scores.kl_divergence for trial in trials], dtype=torch.float64)
        self.failures = Landscape(points, rates.sqrt().asin())
        self.divergence = Landscape(points, divergences.log())

    def truth(self, batch: Sequence[EditParameters | FittedParameters]) -> list[tuple[float, float]]:
        """The failure rate and KL divergence of every trial."""
        points = self._points(batch)
        rates = self.failures(points).clamp(0, torch.pi / 2).sin() ** 2
        return list(zip(rates.tolist(), self.divergence(points).exp().tolist(), strict=True))

    def search(self, trials: int, prompts: int, startup: int, seed: int) -> tuple[float, float, float]:
        """Hypervolume of the front that a search finds, and failure rate and KL of the trial that it chooses."""
        random = np.random.default_rng(seed)
        base = Scores(Count(round(0.75 * prompts), prompts), Count(0, BENIGN), 0, 0.2, 0.0)

        def evaluate(batch: Sequence[EditParameters | FittedParameters]) -> list[Outcome]:
            front = [trial.key for trial in pareto_front(study.trials())]
            outcomes: list[Outcome] = []
            for rate, divergence in self.truth(batch):
                seen = divergence * float(np.exp(random.normal(0, NOISE)))
                failed = int(random.binomial(prompts, rate))
                bounds = Bounds(failed, 0, seen)
                scores = Scores(Count(failed, prompts), Count(0, BENIGN), 0, 1 - rate, seen)
                outcomes.append(bounds if beaten(bounds.key, front) else scores)
            return outcomes

        with tempfile.TemporaryDirectory() as folder:
            study = Study.open(Path(folder) / "study.jsonl", self.space, Plan(seed, startup, 16))
            study.run(trials, evaluate, Objective(base, KL_TARGET, 0.32, 0.18, 0.42))
            front = pareto_front(study.trials())
        chosen = best_trial(front, KL_TARGET)
        assert chosen is not None
        ((rate, divergence),) = self.truth([chosen.parameters])
        return hypervolume(self.truth([trial.parameters for trial in front]), REFERENCE), rate, divergence

    def _points(self, batch: Sequence[EditParameters | FittedParameters]) -> Tensor:
        return torch.tensor([features(parameters, self.space) for parameters in batch], dtype=torch.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of random trials, none of them pruned")
    parser.add_argument("--trials", type=int, default=190)
    parser.add_argument("--prompts", type=int, nargs="+", default=[20, 100], help="select prompts")
    parser.add_argument("--startup", type=int, nargs="+", default=[8, 16, 32, 10_000], help="random trials")
    parser.add_argument("--seeds", type=int, default=16)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    simulation = Simulation(RunFolder(arguments.run))
    explained = simulation.failures.explained, simulation.divergence.explained
    print(f"variance explained, each trial left out in turn: failures {explained[0]:.2f}, log KL {explained[1]:.2f}")
    print("| prompts | random trials | hypervolume (standard error) | failure rate of the chosen | its KL, median |")
    print("|---|---|---|---|---|")
    for prompts in arguments.prompts:
        for startup in arguments.startup:
            found = [simulation.search(arguments.trials, prompts, startup, seed) for seed in range(arguments.seeds)]
            volumes, rates, divergences = zip(*found, strict=True)
            error = statistics.stdev(volumes) / len(volumes) ** 0.5
            print(
                f"| {prompts} | {min(startup, arguments.trials)} | {statistics.fmean(volumes):.3f} ({error:.3f}) "
                f"| {statistics.fmean(rates):.3f} | {statistics.median(divergences):.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
