"""The report beside the candidates: every number is there, and hostile names are text."""

import numpy as np
import pyarrow as pa

from galray.classifier.decision import Decision
from galray.classifier.detection import Detection
from galray.classifier.expectation import expected_yield
from galray.scan.known import MATCHED
from galray.scan.report import Recovery, Report, ScoreHistogram

HOSTILE = "<script>alert(1)</script> | x"
DETECTION = Detection(0.5, 40, 2, 10, 950)
COUNTS = {"rows_in": 51_010, "not_selected": 1000, "rows_out": 50_000, "rejects": 10, "rejects.bad_id": 10}


def report(**changes):
    rows = [{"known": i, "galaxy_id": 10**18 + i, "score": 0.9 - i / 2, "separation": 0.4} for i in range(2)]
    matched = pa.Table.from_pylist(rows, schema=MATCHED).add_column(0, "name", pa.array([HOSTILE, "NGC 1"]))
    whole = {
        "decision": Decision("dust_lane_early_type", 0.5, 0.1),
        "survey": "s3://survey/catalogue",
        "counts": COUNTS,
        "ranked": 150,
        "above": 160,
        "random_share": 0.01,
        "survey_prevalence": 0.001,
        "detection": DETECTION,
        "expected": expected_yield(DETECTION, 50_000, 0.001, seed=0),
        "histogram": ScoreHistogram(np.linspace(0, 1, 11), np.arange(10)),
        "recovery": Recovery(362, 3.0, matched, 0.5),
        "model_id": "model",
        "run_id": "run",
    }
    return Report(**(whole | changes)).document()


def test_both_forms_say_the_same():
    files = report().files("report")
    assert set(files) == {"report.md", "report.html", "scores.png"}
    expected = expected_yield(DETECTION, 50_000, 0.001, seed=0)
    said = [
        "51,010",
        "1,000",
        "50,000",
        "160",
        str(expected.purity),
        "0.80 [0.67, 0.89] (40/50)",
        "1/2",
        str(10**18),
    ]
    for form in ("report.md", "report.html"):
        for text in said:
            assert text in files[form].decode(), (form, text)
    assert files["scores.png"].startswith(b"\x89PNG")


def test_html_is_self_contained_and_names_are_text():
    html = report().html()
    assert "<script" not in html
    assert "http:" not in html
    assert "https:" not in html
    assert "data:image/png;base64," in html
    assert f"| {HOSTILE.replace('|', chr(92) + '|')} |" in report().markdown()


def test_what_is_not_known_is_said():
    text = report(
        survey_prevalence=None, detection=None, expected=None, recovery=None, random_share=0.0
    ).markdown()
    for missing in ("--survey-prevalence", "--known", "--random-share", "no test predictions"):
        assert missing in text
