"""The augmentation study, cell by cell: what each method learns from in each setting, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from galray.classifier.labelling import LabelConfig
from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.classifier.train import ClassifyConfig
from galray.core.cluster import Scaling
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import nearest
from galray.diffusion.synthesize import PRESETS as SYNTHESES
from galray.diffusion.synthesize import SynthesizeConfig
from galray.diffusion.train import PRESETS as DENOISERS
from galray.diffusion.train import TrainConfig
from galray.search.methods import AUGMENTED, BASELINES, METHODS, PAINTED, REAL_ONLY, SELF_TRAINING, VARIATIONS
from galray.search.settings import Setting, class_names, emphasis, filled_up, label_of

Step = TypeVar("Step", TrainConfig, LabelConfig, SynthesizeConfig, ClassifyConfig)

_JUDGEMENTS = 8  # of a classifier on its way


@dataclass(frozen=True)
class Labels:
    """The labels that one setting may use with one seed, or those and what a teacher adds to them.

    Attributes
    ----------
    setting : Setting
    seed : int
    uri : str
        Of the list of galaxies; empty where all labels may be used.
    counts : dict of str to int
        Labelled training galaxies by class.
    training : int
        Training galaxies, labelled or not.
    """

    setting: Setting
    seed: int
    uri: str
    counts: dict[str, int]
    training: int

    @property
    def labelled(self) -> int:
        return sum(self.counts.values())

    def with_given(self, uri: str, given: Mapping[str, int]) -> Labels:
        """Return these and the labels that a teacher gave, listed at `uri`, counted by class."""
        counts = {name: count + given.get(name, 0) for name, count in self.counts.items()}
        return replace(self, uri=uri, counts=counts)

    @property
    def option(self) -> dict[str, str]:
        """The option by which the other jobs are told."""
        return {"labelled": self.uri} if self.uri else {}


_DENOISER = replace(DENOISERS["gz5"].config, emphasis=())


@dataclass(frozen=True, kw_only=True)
class StudyConfig(JobConfig):
    """Which settings, methods and seeds to compare, and how each step is done."""

    settings: tuple[str, ...] = ("10", "30", "100", "300", "all")
    """Labels of each class: a number, all, or class:number to cut that class alone."""
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Each decides which labels may be used, and all that is drawn by chance."""
    galaxies: str = "{root}/galaxies"
    output: str = "{root}/study"
    pretrain: TrainConfig = field(default_factory=lambda: replace(_DENOISER, steps=6000))
    """The denoiser that all others go on from: of all training images, and no vote or label of any."""
    finetune: TrainConfig = field(default_factory=lambda: replace(_DENOISER, steps=1200))
    """The denoiser of one setting and seed, which learns the labels that they may use; beside what it
    emphasises, labelled galaxies are."""
    labelled_share: float = 0.5
    """Share of the galaxies shown in fine-tuning that have labels, evenly over the classes."""
    denoiser_teacher: str = SELF_TRAINING
    """The method of real galaxies whose confident answers the denoiser learns as labels; empty for none."""
    label: LabelConfig = field(default_factory=LabelConfig)
    synthesize: SynthesizeConfig = field(default_factory=lambda: SYNTHESES["gz5"].config)
    vary: SynthesizeConfig = field(default_factory=lambda: SYNTHESES["variations"].config)
    """How variations of the labelled galaxies are painted, by the denoiser that knows no label."""
    fill_up: bool = True
    """Paint the rarest classes first, until real and painted galaxies of each are equally many; otherwise as
    many of each class, so that being painted is no sign of the rare one."""
    classify: ClassifyConfig = field(
        # As in a survey, for teachers: where a few of each class are known, equal shares make one galaxy in
        # five a cigar, and most of what is then taken for one is something else.
        default_factory=lambda: replace(
            CLASSIFIERS["classes"].config, augmentation_ratio=0.5, prior="natural", replacement=True
        )
    )
    galaxies_shown: int = 150_000
    """Real galaxies that each classifier is shown in all its epochs, whatever the setting and method."""
    least_purity: float = 0.5
    """Of a rare target: how many are found is counted at this purity."""

    def __post_init__(self) -> None:
        names = class_names(self.classify.target)
        for setting in self.all_settings:
            setting.check_classes(names)
        for name in self.methods:
            require(
                name in METHODS,
                f"--methods: none is named {name!r}{nearest(name, METHODS)}. Use {', '.join(METHODS)}.",
            )
        for place, name in enumerate(self.methods):
            for adviser in METHODS[name].advisers:
                require(
                    adviser in self.methods[:place],
                    f"--methods: {name} learns from what {adviser} says. Name {adviser} before it.",
                )
        real = [name for name in self.methods if not METHODS[name].augmented]
        require(
            self.denoiser_teacher in ("", *real),
            f"--denoiser-teacher {self.denoiser_teacher}: give one of {', '.join(real)}, or none.",
        )
        for option in ("settings", "methods", "seeds"):
            values = getattr(self, option)
            require(len(set(values)) == len(values) > 0, f"--{option} must be given, each once.")
        require(0 < self.labelled_share < 1, "--labelled-share must lie between 0 and 1, both excluded.")
        require(self.galaxies_shown >= 1, "--galaxies-shown must be at least 1.")

    @property
    def all_settings(self) -> list[Setting]:
        return [Setting.parse(text) for text in self.settings]

    def place(self, labels: Labels) -> str:
        """Return where all of one setting and seed stands."""
        return f"{self.output}/{labels.setting.key}/seed-{labels.seed}"

    def list_place(self, setting: Setting, seed: int) -> str:
        """Return where the list of the labels that may be used is published."""
        return f"{self.output}/{setting.key}/seed-{seed}/labelled"

    def _step(self, config: Step, **options: Any) -> Step:
        """Return a step's options: each is below the study's root, keeps what stands, reads its galaxies."""
        return replace(config, root=self.root, resume=True, galaxies=self.galaxies, **options)

    def pretraining(self) -> TrainConfig:
        """Return how the shared denoiser is trained: all votes hidden, always, so that no label leaks."""
        return self._step(
            self.pretrain,
            output=f"{self.output}/pretrained",
            cache=f"{self.output}/pretrained-cache",
            p_all=1.0,
            emphasis=(),
        )

    def labelling(self, labels: Labels, teacher: str) -> LabelConfig:
        """Return how a method's confident answers become labels."""
        return self._step(
            self.label,
            classifier=f"{self.place(labels)}/{teacher}",
            output=f"{self.place(labels)}/labels-of-{teacher}",
        )

    def finetuning(self, labels: Labels) -> TrainConfig:
        """Return how the denoiser of one setting and seed is trained, with the labels that it may learn."""
        return self._step(
            self.finetune,
            start_from=self.pretraining().output,
            output=f"{self.place(labels)}/denoiser",
            cache=f"{self.place(labels)}/cache",
            emphasis=(
                *self.finetune.emphasis,
                *emphasis(labels.counts, labels.training - labels.labelled, self.labelled_share),
            ),
            seed=labels.seed,
            **labels.option,
        )

    def painting(self, labels: Labels) -> SynthesizeConfig:
        """Return how the synthetic galaxies of one setting and seed are painted."""
        return self._step(
            self.synthesize,
            denoiser=f"{self.place(labels)}/denoiser",
            output=f"{self.place(labels)}/{PAINTED}",
            seed=labels.seed,
            counts=self.to_paint(self.synthesize, labels.counts),
        )

    def varying(self, labels: Labels) -> SynthesizeConfig:
        """Return how variations of the galaxies of one setting and seed are painted."""
        return self._step(
            self.vary,
            denoiser=self.pretraining().output,
            output=f"{self.place(labels)}/{VARIATIONS}",
            seed=labels.seed,
            counts=self.to_paint(self.vary, {name: count for name, count in labels.counts.items() if count}),
            **labels.option,
        )

    def to_paint(self, painting: SynthesizeConfig, counts: Mapping[str, int]) -> tuple[str, ...]:
        """Return how many galaxies to paint of each label, as --counts; real ones are counted by class."""
        asked_for = {request.label for request in painting.requests()}
        by_label = {label_of(name, self.classify.target): n for name, n in counts.items()}
        real = {label: n if self.fill_up else 0 for label, n in by_label.items() if label in asked_for}
        return tuple(f"{label}:{n}" for label, n in filled_up(real, painting.count).items())

    def classification(self, labels: Labels, name: str) -> ClassifyConfig:
        """Return how one method's classifier is trained."""
        method, place = METHODS[name], self.place(labels)
        sources: dict[str, Any] = {}
        if method.augmented:
            # No synthetic galaxy is shown more often than a real one.
            painted = self.synthesize if method.synthetic == PAINTED else self.vary
            ratio = min(self.classify.augmentation_ratio, painted.count / labels.labelled)
            sources = {"synthetic": f"{place}/{method.synthetic}", "augmentation_ratio": ratio}
        sources |= {"approved_by": f"{place}/{method.approver}"} if method.approver else {}
        return self._step(
            self.classify,
            output=f"{place}/{name}",
            seed=labels.seed,
            turns=False,
            **self.schedule(labels.labelled),
            **labels.option,
            **sources,
            **method.options,
        )

    def schedule(self, galaxies: int) -> dict[str, int]:
        """Return epochs and batch size with which so many galaxies are shown as often as the budget says."""
        workers = self.classify.scaling.workers
        batch_size = min(self.classify.batch_size, max(galaxies // workers, 1) * workers)
        epochs = max(1, round(self.galaxies_shown / max(galaxies, 1)))
        return {
            "epochs": epochs,
            "batch_size": batch_size,
            "validate_every": -(
                -epochs // _JUDGEMENTS
            ),  # of a few galaxies an epoch takes less than a judgement
        }

    def possible(self, labels: Labels) -> list[str]:
        """Return the methods that can learn: with labels of one class, only from what asking can paint."""
        if sum(count > 0 for count in labels.counts.values()) > 1:
            return list(self.methods)
        able: list[str] = []
        for name in self.methods:
            if METHODS[name].synthetic == PAINTED and set(METHODS[name].advisers) <= set(able):
                able.append(name)
        return able


_GZ5 = StudyConfig(
    settings=(
        *("10", "30", "100", "300", "all"),
        *(f"cigar_shaped_smooth:{count}" for count in (10, 30, 100)),
    ),
)

# Of so few pixels a step takes as long as its weights do: twice the galaxies in it are nearly free.
_32PX = replace(
    _GZ5.pretrain,
    denoiser=replace(_GZ5.pretrain.denoiser, size_px=32),
    batch_size=64,
    scaling=Scaling(),
)

_MOCK = StudyConfig(
    settings=tuple(f"dust_lane_early_type:{count}" for count in (0, 10, 40)),
    methods=(*BASELINES, AUGMENTED, "augmented-variations"),
    pretrain=replace(_GZ5.pretrain, batch_size=16, learning_rate=1.5e-3),
    # A lane must be learnt without the disk beside it, of the few disks in which volunteers call it odd.
    finetune=replace(
        _GZ5.finetune,
        steps=3000,
        batch_size=16,
        learning_rate=1.5e-3,
        p_question=0.5,
        emphasis=("dust_lane:8",),
    ),
    synthesize=SynthesizeConfig(recipe="dust_lane_early_type_in_turn", guidance_scale=4.0, count=4000),
    # Half hidden by more noise, galaxies lose their lanes.
    vary=replace(
        SYNTHESES["variations"].config,
        recipe="dust_lane_early_type_as_real",
        start_time=0.65,
        count=4000,
    ),
    fill_up=False,
    classify=replace(CLASSIFIERS["laptop"].config, replacement=True),
)

PRESETS = {
    "gz5": Preset("the full study on the clean sample's five classes at 64 px: days on two cores", _GZ5),
    "gz5-quick": Preset(
        "two settings, two seeds, shorter training: an afternoon on two cores",
        replace(
            _GZ5,
            settings=("30", "cigar_shaped_smooth:30"),
            seeds=(0, 1),
            pretrain=replace(_GZ5.pretrain, steps=3000),
            finetune=replace(_GZ5.finetune, steps=600),
            synthesize=replace(_GZ5.synthesize, count=1500, num_steps=15),
            galaxies_shown=40_000,
        ),
    ),
    "gz5-32px": Preset(
        "all settings and seeds at 32 px (ingest with --resize-px 32): a night on two cores",
        replace(
            _GZ5,
            methods=tuple(name for name in METHODS if name != "augmented-self-training"),
            pretrain=replace(_32PX, steps=3000),
            finetune=replace(_32PX, steps=600),
            synthesize=replace(_GZ5.synthesize, count=1500, num_steps=15),
            vary=replace(_GZ5.vary, count=4500),
            classify=replace(_GZ5.classify, size_px=32),
            galaxies_shown=50_000,
        ),
    ),
    "mock": Preset(
        "dust-lane early types at 0.1% of a mock survey; make it first with mock.py --labelled 200000 "
        "--mock.dust-lane-fraction-early 0.002 --mock.great-bulge-fraction-edge-on 0.6, and ingest it",
        _MOCK,
    ),
    "debug": Preset(
        "one setting, one seed, two methods, on the debug mock survey: to see that everything runs",
        StudyConfig(
            settings=("12",),
            methods=(REAL_ONLY, AUGMENTED),
            denoiser_teacher=REAL_ONLY,
            seeds=(0,),
            pretrain=DENOISERS["debug"].config,
            finetune=DENOISERS["debug"].config,
            synthesize=replace(SYNTHESES["debug"].config, recipe="gz5"),
            classify=replace(CLASSIFIERS["debug"].config, target="", augmentation_ratio=0.5),
            galaxies_shown=600,
        ),
    ),
}
