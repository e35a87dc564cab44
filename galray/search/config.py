"""Which points a search tries, and how each of them is tried."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.classifier.train import ClassifyConfig
from galray.core.config import JobConfig, Preset, require
from galray.core.schema import fingerprint
from galray.diffusion.synthesize import PRESETS as SYNTHESES
from galray.diffusion.synthesize import SynthesizeConfig
from galray.search.space import Painting, Point, Space

OF_CLASSES = ("accuracy", "macro_f1")
OF_TARGET = ("average_precision", "completeness", "purity", "f1")


@dataclass(frozen=True, kw_only=True)
class SearchConfig(JobConfig):
    """Which points to try, and how each is tried."""

    strategy: Literal["grid", "optuna"] = "grid"
    """Try every combination, or as many as --budget, which Optuna chooses by those before."""
    budget: int = 16
    """Points that Optuna tries, that of real galaxies alone included."""
    objectives: tuple[str, ...] = ("average_precision",)
    """What to maximise on validation galaxies: one figure, or two, such as completeness purity."""
    guidance_scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    augmentation_ratios: tuple[float, ...] = (0.05, 0.2)
    """Synthetic galaxies for each real one. The search always tries none as well."""
    num_steps: tuple[int, ...] = ()
    """Steps of the sampler to try; none keeps that of --synthesize."""
    condition_weights: tuple[float, ...] = ()
    """Weights of what is asked for; none keeps that of --synthesize."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each point is tried with each of these, unless it is stopped early."""
    synthesize: SynthesizeConfig = field(default_factory=SynthesizeConfig)
    classify: ClassifyConfig = field(default_factory=lambda: CLASSIFIERS["laptop"].config)
    output: str = "{root}/search"
    concurrent_trials: int = 0
    """Trials at a time, each with the workers of its classifier; 0: as many as the cluster holds."""
    grace_epochs: int = 4
    """Epochs before a trial can be stopped for falling behind; each time they double, half may go on."""

    def __post_init__(self) -> None:
        require(bool(self.guidance_scales), "--guidance-scales is empty; give at least one.")
        require(min(self.augmentation_ratios, default=0) > 0, "--augmentation-ratios must all be above 0.")
        require(len(set(self.seeds)) == len(self.seeds) > 0, "--seeds must be given, each once.")
        require(self.concurrent_trials >= 0, "--concurrent-trials must be at least 1, or 0 for all cores.")
        require(self.grace_epochs >= 1, "--grace-epochs must be at least 1.")
        for name in ("guidance_scales", "augmentation_ratios", "num_steps", "condition_weights"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"--{name.replace('_', '-')} names a value twice.")
        self._check_objectives()
        self._check_budget()

    def _check_objectives(self) -> None:
        known = (OF_TARGET if self.classify.target else ()) + OF_CLASSES
        unknown = set(self.objectives) - set(known)
        require(
            not unknown and 1 <= len(set(self.objectives)) == len(self.objectives) <= 2,
            f"--objectives {' '.join(self.objectives)}: give one or two of {', '.join(known)}"
            + ("." if self.classify.target else "; the others need a --classify.target."),
        )

    def _check_budget(self) -> None:
        if self.strategy == "optuna":
            points = len(self.space.points())
            require(
                2 <= self.budget <= points,
                f"--budget {self.budget}: there are {points} points. Give 2 to {points}, or --strategy grid.",
            )

    @property
    def space(self) -> Space:
        """All points that the search could try."""
        return Space(
            self.guidance_scales,
            self.augmentation_ratios,
            self.num_steps or (self.synthesize.num_steps,),
            self.condition_weights or (self.synthesize.condition_weight,),
        )

    @property
    def points(self) -> int:
        """How many points the search tries."""
        return self.budget if self.strategy == "optuna" else len(self.space.points())

    @property
    def followed(self) -> str:
        """The figure by which trials are stopped early: of completeness and purity, what holds both."""
        return self.objectives[0] if len(self.objectives) == 1 or not self.classify.target else OF_TARGET[0]

    def synthesis(self, painting: Painting) -> SynthesizeConfig:
        """Return how one synthetic set is painted; its place is named by all that decides what is in it."""
        config = replace(self.synthesize, root=self.root, resume=True, **asdict(painting))
        decides = [asdict(config.plan()), asdict(config.compute()), config.batch_size, config.denoiser]
        name = f"guidance-{painting.guidance_scale:g}-{fingerprint(json.dumps(decides))}"
        return replace(config, output=f"{self.output}-synthetic/{name}")

    def plan(self) -> str:
        """Return a fingerprint of all that a trial's outcome depends on, and of which points there are."""
        trains = replace(self.classify, root=self.root, resume=False)
        sets = {str(painting): self.synthesis(painting).output for painting in self.space.paintings()}
        decides = [asdict(self.space), self.seeds, self.objectives, asdict(trains), sets]
        return fingerprint(json.dumps(decides))

    def classification(self, point: Point, seed: int) -> ClassifyConfig:
        """Return how one classifier of a point is trained: beside others, with threads for its own cores."""
        scaling = self.classify.scaling
        threads = scaling.threads_per_worker or (
            0 if self.concurrent_trials == 1 else scaling.cpus_per_worker
        )
        return replace(
            self.classify,
            root=self.root,
            scaling=replace(scaling, threads_per_worker=threads),
            synthetic=self.synthesis(point.painting).output if point.painting else "",
            augmentation_ratio=point.augmentation_ratio,
            seed=seed,
            turns=False,
        )


PRESETS = {
    "laptop": Preset("guidance x ratio with three seeds: an hour on two cores", SearchConfig()),
    "pareto": Preset(
        "completeness against purity over guidance, ratio and condition weight, points chosen by Optuna",
        SearchConfig(
            strategy="optuna",
            budget=20,
            objectives=("completeness", "purity"),
            guidance_scales=(1.0, 1.5, 2.0, 3.0, 4.0),
            augmentation_ratios=(0.02, 0.05, 0.1, 0.2, 0.4),
            condition_weights=(1.0, 1.3),
        ),
    ),
    "gz5": Preset(
        "macro F1 of the five classes of the clean sample, points chosen by Optuna",
        SearchConfig(
            strategy="optuna",
            budget=12,
            objectives=("macro_f1",),
            guidance_scales=(1.0, 1.5, 2.0, 3.0, 4.0),
            augmentation_ratios=(0.1, 0.25, 0.5, 1.0),
            synthesize=SYNTHESES["gz5"].config,
            classify=CLASSIFIERS["classes"].config,
        ),
    ),
    "debug": Preset(
        "two points, one seed, seconds each",
        SearchConfig(
            guidance_scales=(2.0,),
            augmentation_ratios=(0.25,),
            seeds=(0,),
            synthesize=SYNTHESES["debug"].config,
            classify=CLASSIFIERS["debug"].config,
        ),
    ),
}
