"""What each step of a study may see, and that methods have the same budget."""

from dataclasses import replace

import pytest

from galray.core.errors import ConfigError
from galray.search.experiment import PRESETS, Labels, StudyConfig
from galray.search.methods import AUGMENTED, METHODS, REAL_ONLY
from galray.search.settings import Setting

NAMES = ("completely_round_smooth", "in_between_smooth", "cigar_shaped_smooth", "edge_on", "spiral")


def labels(count: int, rare: int | None = None, seed: int = 3) -> Labels:
    counts = dict.fromkeys(NAMES, count) | ({"spiral": rare} if rare is not None else {})
    return Labels(Setting.parse("all"), seed, "", counts, 18_000)


def test_what_all_denoisers_go_on_from_has_seen_no_label() -> None:
    config = StudyConfig()
    pretraining = replace(config, pretrain=replace(config.pretrain, emphasis=("spiral:3",))).pretraining()
    assert pretraining.p_all == 1.0
    assert pretraining.emphasis == ()
    assert pretraining.start_from == ""
    finetuning = config.finetuning(labels(10))
    assert finetuning.start_from == pretraining.output
    assert finetuning.p_all < 1


def test_each_seed_has_its_own_denoiser_and_its_own_galaxies() -> None:
    config = StudyConfig()
    places = {config.finetuning(labels(10, seed=seed)).output for seed in range(3)}
    assert len(places) == 3
    painting = config.painting(labels(10, seed=1))
    assert painting.denoiser == config.finetuning(labels(10, seed=1)).output
    assert config.classification(labels(10, seed=1), AUGMENTED).synthetic == painting.output


@pytest.mark.parametrize("name", [REAL_ONLY, AUGMENTED])
def test_only_augmented_methods_learn_from_synthetic_galaxies(name: str) -> None:
    config = StudyConfig().classification(labels(100), name)
    assert bool(config.synthetic) == METHODS[name].augmented
    assert config.output.endswith(f"all/seed-3/{name}")
    assert config.seed == 3


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.teacher])
def test_a_pupil_learns_what_its_teacher_labels_beside_the_labels(name: str) -> None:
    config, few = StudyConfig(galaxies_shown=60_000), labels(30)
    teacher = config.classification(few, METHODS[name].teacher)
    labelling = config.labelling(few, METHODS[name].teacher)
    assert labelling.classifier == teacher.output
    learnt = few.with_given(labelling.output, {"spiral": 50, "edge_on": 20})
    assert learnt.counts == few.counts | {"spiral": 80, "edge_on": 50}
    taught = config.classification(learnt, name)
    assert taught.labelled == labelling.output
    assert taught.epochs * (150 + 70) == pytest.approx(60_000, rel=0.1)
    assert taught.synthetic == teacher.synthetic


def test_the_denoiser_learns_what_a_teacher_of_real_galaxies_labels() -> None:
    few = labels(30)
    more = StudyConfig().finetuning(few.with_given("labels.parquet", {"spiral": 9_000}))
    assert more.labelled == "labels.parquet"
    times = dict(rule.split(":") for rule in more.emphasis)
    assert int(times["smooth+cigar_shaped"]) > 50
    assert "features_or_disk+not_edge_on+spiral" not in times


def test_an_approver_has_seen_no_synthetic_galaxy() -> None:
    approved = StudyConfig().classification(labels(30), "augmented-approved")
    approver = StudyConfig().classification(labels(30), METHODS["augmented-approved"].approver)
    assert approved.approved_by == approver.output
    assert not approver.synthetic


def test_variations_are_of_the_labelled_galaxies_by_a_denoiser_that_knows_no_label() -> None:
    few, config = labels(30), StudyConfig()
    varying = config.varying(few)
    assert varying.labelled == few.uri
    assert varying.denoiser == config.pretraining().output
    assert varying.guidance_scale == 0
    learning = config.classification(few, "augmented-variations")
    assert learning.synthetic == varying.output != config.painting(few).output


def test_what_is_painted_fills_up_the_rarest_classes_that_can_be_painted() -> None:
    config = StudyConfig()
    counts = dict(text.split(":") for text in config.painting(labels(5_000, rare=0)).counts)
    assert counts == dict.fromkeys(NAMES, "0") | {"spiral": str(config.synthesize.count)}
    varied = config.varying(labels(5_000, rare=0)).counts
    assert "spiral" not in dict(text.split(":") for text in varied)  # there is none to vary
    assert sum(int(text.split(":")[1]) for text in varied) == config.vary.count


def test_or_as_many_of_each_class_are_painted() -> None:
    config = StudyConfig(fill_up=False)
    shares = {int(text.split(":")[1]) for text in config.painting(labels(5_000, rare=0)).counts}
    assert shares == {config.synthesize.count // len(NAMES)}


def test_beside_a_rare_target_galaxies_are_painted_that_are_none() -> None:
    config = PRESETS["mock"].config
    few = replace(labels(10), counts={"dust_lane_early_type": 10, "other": 160_000})
    alike = ("dust_lane_early_type:2000", "not_dust_lane_early_type:2000")
    assert config.painting(few).counts == config.varying(few).counts == alike
    filling_up = replace(config, fill_up=True).painting(few)
    assert filling_up.counts == ("dust_lane_early_type:4000", "not_dust_lane_early_type:0")


def test_a_denoiser_is_shown_more_of_what_its_options_emphasise_too() -> None:
    config = PRESETS["mock"].config
    few = replace(labels(10), counts={"dust_lane_early_type": 10, "other": 900})
    assert config.finetuning(few).emphasis[0] == "dust_lane:8"
    assert config.finetuning(few).emphasis[1].startswith("smooth+odd+dust_lane:")


def test_no_synthetic_galaxy_is_shown_more_often_than_a_real_one() -> None:
    config = StudyConfig()
    few, many = (config.classification(labels(n), "augmented-variations") for n in (30, 5_000))
    assert few.augmentation_ratio == config.classify.augmentation_ratio
    assert many.augmentation_ratio == config.vary.count / 25_000


@pytest.mark.parametrize("count", [2, 10, 30, 3000])
def test_every_setting_is_shown_as_many_galaxies(count: int) -> None:
    config = StudyConfig(galaxies_shown=60_000)
    schedule = config.schedule(5 * count)
    assert schedule["epochs"] * 5 * count == pytest.approx(60_000, rel=0.2)
    assert schedule["batch_size"] <= 5 * count


def test_without_a_galaxy_of_the_target_only_painted_ones_can_teach() -> None:
    config = StudyConfig(methods=(REAL_ONLY, AUGMENTED), denoiser_teacher="")
    one_class = replace(labels(10), counts={"dust_lane_early_type": 0, "other": 900})
    assert config.possible(one_class) == [AUGMENTED]
    able = StudyConfig().possible(one_class)
    assert able == [AUGMENTED, "augmented-class-balanced", "augmented-self-training"]
    assert config.possible(labels(10, rare=0)) == [REAL_ONLY, AUGMENTED]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": ("cigars:10",)}, "no class is named so"),
        ({"settings": ()}, "--settings"),
        ({"methods": (REAL_ONLY, "augmentd")}, "did you mean 'augmented'"),
        ({"methods": ("self-training", REAL_ONLY)}, "Name real-only before it"),
        ({"methods": (REAL_ONLY, "augmented-self-training")}, "Name augmented before it"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"labelled_share": 1.0}, "--labelled-share"),
        ({"denoiser_teacher": AUGMENTED}, "--denoiser-teacher augmented: give one of real-only"),
        ({"denoiser_teacher": "focal", "methods": (REAL_ONLY,)}, "--denoiser-teacher focal"),
    ],
)
def test_studies_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudyConfig(**options)
