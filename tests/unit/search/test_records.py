"""What outlives the driver, and what Optuna suggests after it."""

from pathlib import Path

from galray.core.manifest import publish
from galray.core.storage import Location, open_location
from galray.search.records import TrialRecord, begun, mean_figures, trial_rows
from galray.search.space import REAL_ONLY, Point, Space
from galray.search.suggest import PointSearch

POINT = Point(2.0, 0.1, 20, 1.0)
SPACE = Space((1.0, 2.0, 3.0), (0.1, 0.2), (20,), (1.0,))


def record_of(search: Location, point: Point) -> TrialRecord:
    record = TrialRecord.of(search, point)
    record.begin("run-of-the-first-driver")
    return record


def test_a_trial_keeps_its_point_its_run_and_its_epochs(tmp_path: Path) -> None:
    search = open_location(str(tmp_path))
    record = record_of(search, POINT)
    for step in (1, 2, 10):
        record.add_epoch(0, {"step": step, "loss": 1.0, "f1": step / 10})
    again = TrialRecord.of(search, POINT)
    assert again.begin("run-of-the-second-driver") == again.run_id == "run-of-the-first-driver"
    assert [figures["step"] for figures in again.epochs(0)] == [1, 2, 10]
    assert trial_rows(again, [0, 1]) == [
        {**vars(POINT), "seed": 0, "epochs": 10, "through": False, "f1": 1.0}
    ]


def test_trials_that_have_ended_come_first(tmp_path: Path) -> None:
    search = open_location(str(tmp_path))
    (tmp_path / "trials/killed-at-once").mkdir(parents=True)
    record_of(search, REAL_ONLY)
    record_of(search, POINT).end()
    assert [(record.point, record.ended) for record in begun(search)] == [(POINT, True), (REAL_ONLY, False)]


def test_a_seed_is_through_once_it_is_published(tmp_path: Path) -> None:
    record = record_of(open_location(str(tmp_path)), POINT)
    record.add_epoch(1, {"step": 1, "f1": 0.5})
    assert not record.published(1)
    with publish(record.seed(1), "trial", {"resume": True}):
        pass
    assert trial_rows(record, [1])[0]["through"]


def test_means_are_taken_figure_by_figure() -> None:
    assert mean_figures([{"f1": 0.2, "purity": 1.0}, {"f1": 0.4, "purity": 0.0}]) == {
        "f1": 0.30000000000000004,
        "purity": 0.5,
    }


def suggested(search: PointSearch, count: int) -> list[Point]:
    """Return what is suggested, each trial ending with the same figure, so that Optuna learns nothing."""
    points = []
    for i in range(count):
        found = search.suggest(f"trial-{i}")
        if not isinstance(found, dict):
            break
        points.append(Point(**found["point"]))
        search.on_trial_complete(f"trial-{i}", {"f1": 0.5, "purity": 0.5, "completeness": 0.5})
    return points


def test_every_point_is_suggested_once_until_none_is_left() -> None:
    points = suggested(PointSearch(SPACE, [], ["f1"], seed=0), 20)
    assert points[0] == REAL_ONLY
    assert sorted(points) == sorted(SPACE.points())


def test_known_points_come_first_and_are_not_suggested_again() -> None:
    known = [POINT, REAL_ONLY]
    points = suggested(PointSearch(SPACE, known, ["completeness", "purity"], seed=0), 5)
    assert points[:2] == known
    assert len(set(points)) == 5
