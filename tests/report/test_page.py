import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest

from pfedsam.core.errors import OptionError, RunError, StoreError
from pfedsam.data.manifest import Case, Site
from pfedsam.data.split import write_split
from pfedsam.evaluation.scores import ClassScores
from pfedsam.evaluation.summary import summarize_site
from pfedsam.experiment.options import RunOptions
from pfedsam.report.format import MISSING
from pfedsam.report.overlays import write_overlays
from pfedsam.report.page import UNNAMED, refuse_other_file, write_comparison, write_page
from pfedsam.report.records import RecordWriter
from pfedsam.report.summary_file import write_summary

HOSTILE = "<script>alert(1)<script>"


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def tags(html: str) -> list[tuple[str, dict]]:
    parser = Tags()
    parser.feed(html)
    return parser.found


@pytest.fixture(scope="module")
def html(run_folder, tmp_path_factory, fake) -> str:
    alone = tmp_path_factory.mktemp("alone")
    write_summary(alone / "summary.json", fake.make_summary("local-only", fake.SITES[:2]))
    return write_page(run_folder, baseline=alone).read_text("utf-8")


def assert_loads_nothing(html: str) -> None:
    for tag, attributes in tags(html):
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_the_page_stands_alone(html):
    assert_loads_nothing(html)


def test_the_headline_has_mean_worst_and_gain(html, fake):
    summary, alone = fake.make_summary(sites=fake.SITES[:2]), fake.make_summary("local-only", fake.SITES[:2])
    gains = [summary.sites[name].personal.dice - alone.sites[name].personal.dice for name in fake.SITES[:2]]
    tiles = html[html.index("tiles") : html.index("</dl>")]
    assert f"{summary.mean.personal.dice:.3f}" in tiles
    assert f"{summary.sites[summary.worst_site].personal.dice:.3f}<small>{summary.worst_site}" in tiles
    assert f"{sum(gains) / 2:+.3f}".replace("-", "\N{MINUS SIGN}") in tiles


def test_every_site_has_its_figures_and_three_pictures(html, fake):
    pictures = [attributes["alt"] for tag, attributes in tags(html) if tag == "img"]
    for name in fake.SITES[:2]:
        assert f"Validation Dice over rounds at {name}" in pictures
        assert f"Expert usage at {name}" in pictures
        assert sum(f"case of {name}," in alt for alt in pictures) == 3
    assert "worst, Dice 0.550" in html
    assert "Bytes of one update by component" in pictures


def test_settings_are_shown_without_the_places_of_the_data(html):
    assert "lora: {rank: 4}" in html
    assert "secret" not in html
    assert "…/amsterdam" in html


def test_of_mixed_units_each_distance_has_its_own_and_there_is_no_mean_and_no_worst(tmp_path, fake):
    run = fake.run_scores({"a": {"1": 0.6}, "b": {"1": 0.4}}, units={"a": "mm"})
    write_summary(tmp_path / "summary.json", run.summary)
    html = write_page(tmp_path).read_text("utf-8")
    found = {
        cells[0]: cells[-3:-1]
        for line in re.findall(r"<tr>.*?</tr>", html[html.index("Every site") : html.index("Every class")], re.DOTALL)
        if len(cells := re.findall(r"<t[hd][^>]*>([^<]*)<", line)) > 4
    }
    assert found == {
        "Site": ["HD95", "ASSD"],
        "a": ["4.00 mm", "2.00 mm"],
        "b": ["4.00 px", "2.00 px"],
        "Mean over sites": [MISSING, MISSING],
        "Lowest Dice: b": [MISSING, MISSING],
    }


def test_of_a_resumed_run_the_page_gives_the_time_since_it_was_resumed(tmp_path, fake):
    resumed = fake.make_summary().model_copy(update={"seconds": {"since resumed": 90.0}})
    write_summary(tmp_path / "summary.json", resumed)
    html = write_page(tmp_path).read_text("utf-8")
    assert "; it ended 1.5 min after it was last resumed." in html
    write_summary(tmp_path / "summary.json", resumed.model_copy(update={"seconds": {"total": 90.0}}))
    assert ", in 1.5 min." in write_page(tmp_path).read_text("utf-8")


def test_a_comparison_says_why_a_resumed_run_has_no_time(tmp_path, fake):
    for name, seconds in (("whole", {"total": 90.0}), ("fedavg", {"since resumed": 38.1})):
        (tmp_path / name).mkdir()
        write_summary(tmp_path / name / "summary.json", fake.make_summary().model_copy(update={"seconds": seconds}))
    html = write_comparison({name: tmp_path / name for name in ("whole", "fedavg")}, tmp_path / "c.html").read_text(
        "utf-8"
    )
    assert "From when it was last resumed to its end: fedavg 38 s." in html


def test_the_place_of_the_backbone_is_not_told(tmp_path, fake):
    placed = fake.make_summary().model_copy(update={"backbone": "/home/ada/weights/sam_vit_b.pth"})
    write_summary(tmp_path / "summary.json", placed)
    html = write_page(tmp_path).read_text("utf-8")
    assert "on the backbone sam_vit_b.pth, seed" in html
    assert "/home/ada" not in html


def test_the_name_heads_the_page_of_a_run_that_was_given_one(tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a",)))
    (tmp_path / "config.yaml").write_text("name: <b>first try</b>\n", "utf-8")
    html = write_page(tmp_path).read_text("utf-8")
    assert "<h1>&lt;b&gt;first try&lt;/b&gt;: pfedsam at 1 site</h1>" in html
    assert "<title>&lt;b&gt;first try&lt;/b&gt;, pfedsam:" in html
    (tmp_path / "config.yaml").write_text(f"name: {RunOptions.model_fields['name'].default}\n", "utf-8")
    assert "<h1>pfedsam at 1 site</h1>" in write_page(tmp_path).read_text("utf-8")
    assert RunOptions.model_fields["name"].default == UNNAMED


def test_the_method_is_told_with_the_phases_that_ran(tmp_path, html, fake):
    assert (
        "order in which they first ran: global (the shared parameters are trained), local (the local parameters are trained)."
        in html
    )
    write_summary(tmp_path / "summary.json", fake.make_summary("fedavg", ("a",)))
    with RecordWriter(tmp_path / "records.jsonl") as records:
        records.write({"kind": "round", "round": 0, "site": "a", "phase": "coupled", "loss": 0.5})
        records.write({"kind": "timing", "total": 1.0})
    html = write_page(tmp_path).read_text("utf-8")
    assert "<p>fedavg, one of the methods in" in html
    assert "first ran: coupled (both models are trained, the shared and the personal one, on the same images)." in html
    assert "experts" not in html


def test_the_page_says_whose_pictures_it_holds(tmp_path, html, fake):
    assert "holds pictures of patients</strong> of amsterdam, bologna:" in html
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a",)))
    assert "pictures of patients" not in write_page(tmp_path).read_text("utf-8")


def test_a_damaged_configuration_is_an_error(tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a",)))
    (tmp_path / "config.yaml").write_text("name: [", "utf-8")
    with pytest.raises(StoreError, match=r"config\.yaml is not YAML"):
        write_page(tmp_path)


def test_the_page_says_what_it_is_not(html):
    assert "Not a medical device" in html


@pytest.mark.parametrize("name", [HOSTILE, "</title><img src=x onerror=alert(1)>", '"><b onmouseover=a>'])
def test_a_site_cannot_put_anything_into_the_page(tmp_path, name, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=(name, "b")))
    (tmp_path / "config.yaml").write_text(f"method: {HOSTILE}\n", "utf-8")
    html = write_page(tmp_path).read_text("utf-8")
    assert_loads_nothing(html)
    assert name not in html
    comparison = write_comparison({HOSTILE: tmp_path}, tmp_path / "c.html").read_text("utf-8")
    assert_loads_nothing(comparison)
    assert HOSTILE not in comparison


def test_a_site_named_like_a_path_reads_no_file_outside(tmp_path, fake):
    run = tmp_path / "run"
    (run / "sites").mkdir(parents=True)
    write_overlays(tmp_path / "other" / "overlays", [fake.make_overlay(1, 0.5)])
    write_summary(run / "summary.json", fake.make_summary(sites=("../../other",)))
    assert "worst, Dice" not in write_page(run).read_text("utf-8")


def test_a_summary_alone_makes_a_page(tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary("fedavg"))
    html = write_page(tmp_path).read_text("utf-8")
    assert "no personal ones" in html
    assert "Gain" not in html
    assert "<h2>Learning" not in html


def test_only_the_last_validation_says_who_uses_the_shared_model(tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a", "b")))
    fake.make_records(tmp_path, ("a", "b"), rounds=2)
    with RecordWriter(tmp_path / "records.jsonl") as records:
        records.write({"kind": "plain", "round": 0, "site": "a"})
        records.write({"kind": "plain", "round": 1, "site": "b"})
        records.write({"kind": "timing", "total": 1.0})
    html = write_page(tmp_path).read_text("utf-8")
    assert html.count("uses the shared model: its personal one does clearly worse") == 1
    assert "<td>2</td><td>validate</td><td>b</td><td>uses the shared model" in html


def test_what_happens_after_the_last_round_is_told_as_the_end(tmp_path, fake):
    summary = fake.make_summary(sites=("a", "b"))
    write_summary(tmp_path / "summary.json", summary)
    fake.make_records(tmp_path, ("a", "b"), rounds=summary.rounds)
    with RecordWriter(tmp_path / "records.jsonl") as records:
        for round_ in (summary.rounds - 1, summary.rounds):
            records.write({"kind": "absent", "round": round_, "task": "validate", "sites": {"a": "it failed"}})
        records.write({"kind": "timing", "total": 1.0})
    html = write_page(tmp_path).read_text("utf-8")
    assert f"<td>{summary.rounds}</td><td>validate</td>" in html
    assert "<td>end</td><td>validate</td>" in html


def test_the_same_run_gives_the_same_page(tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a",)))
    fake.make_records(tmp_path, ("a",), rounds=2)
    assert write_page(tmp_path).read_bytes() == write_page(tmp_path).read_bytes()


def test_a_run_that_did_not_end_has_no_page(tmp_path):
    with pytest.raises(StoreError, match=r"summary\.json is missing"):
        write_page(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_of_other_sites_is_refused(run_folder, tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary("local-only", ("zagreb",)))
    with pytest.raises(RunError, match="the baseline \\['zagreb'\\]"):
        write_page(run_folder, baseline=tmp_path)


def test_a_baseline_that_was_scored_on_other_cases_is_refused(tmp_path, fake):
    for name, method, case in (("run", "pfedsam", "a"), ("alone", "local-only", "b")):
        place = tmp_path / name / "sites" / fake.SITES[0]
        place.mkdir(parents=True)
        write_summary(tmp_path / name / "summary.json", fake.make_summary(method, fake.SITES[:1]))
        write_split(
            place / "split.json", Site(fake.SITES[0], place, (Case(fake.SITES[0], case, None, None, case, "test"),))
        )
    with pytest.raises(RunError, match="were not scored on the same test cases"):
        write_page(tmp_path / "run", baseline=tmp_path / "alone")


def test_the_comparison_stands_alone_and_marks_the_best(run_folder, tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary("fedavg", fake.SITES[:2]))
    html = write_comparison({"ours": run_folder, "average": tmp_path}, tmp_path / "c.html").read_text("utf-8")
    assert_loads_nothing(html)
    best = fake.make_summary(sites=fake.SITES[:2]).mean.personal.dice
    assert re.search(rf'Mean over sites</th><td></td><td class="best">{best:.3f}<span', html)


def test_records_that_were_cut_after_the_last_round_are_told(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    path = folder / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(StoreError, match="so lines are missing"):
        write_page(folder)


def test_a_missed_structure_stands_beside_its_distances(tmp_path, fake):
    organ = ClassScores(0.9, 0.8, 1.0, 0.5)
    cases = [
        fake.case_scores(name, {"organ": organ, "lesion": ClassScores(0.0, 0.0)}, {"organ": "both", "lesion": where})
        for name, where in (("1", "missed"), ("2", "missed"), ("3", "extra"))
    ]
    write_summary(tmp_path / "summary.json", fake.summary_of({"a": summarize_site(cases)}))
    html = write_page(tmp_path).read_text("utf-8")
    table = html[html.index("Every class at every site") : html.index("Details of the run")]
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)<", line) for line in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
    assert cells[1][:6] == ["a", "organ", "3", "0 of 3", "0", "0.900"]
    assert cells[2][:6] == ["a", "lesion", "2", "2 of 2", "1", "0.000"]
    assert cells[4][:6] == ["Mean over sites", "lesion", "2", "2 of 2", "1", "0.000"]
    assert "2 because the prediction misses the class; 1 because only the prediction holds the class" in html


def test_a_local_run_has_intervals_and_says_what_it_rests_on(html):
    assert re.search(r'<span class="ci">0\.\d\d to 0\.\d\d</span>', html)
    assert "One seed (1):" in html
    assert "Classes: organ, lesion. Tested on 2026-11-28, trained on 41 cases, validated on 8." in html
    assert "trained on 20, validated on 4</span>" in html
    assert "<td>8 (8)</td>" in html.replace("\n", "")


def test_a_gain_is_coloured_only_where_its_interval_excludes_zero(tmp_path, fake):
    for name, level in (("run", 0.8), ("alone", 0.8)):
        method = {"run": "pfedsam", "alone": "local-only"}[name]
        fake.write_case_scores(tmp_path / name, fake.SITES[:2], level)
        write_summary(tmp_path / name / "summary.json", fake.make_summary(method, fake.SITES[:2]))
    same = write_page(tmp_path / "run", baseline=tmp_path / "alone").read_text("utf-8")
    assert not re.search(r'<span class="(up|down)">', same)  # the same scores of every patient: no difference at all
    fake.write_case_scores(tmp_path / "alone", fake.SITES[:2], 0.7)
    better = write_page(tmp_path / "run", baseline=tmp_path / "alone").read_text("utf-8")
    assert len(re.findall(r'<span class="up">', better)) == 1 + 2 + 1 + 1  # headline, sites, mean, lowest


def test_a_site_with_one_test_patient_leaves_the_means_without_an_interval(tmp_path, fake):
    runs = {method: fake.make_run(tmp_path / method, method, fake.SITES[:2]) for method in ("pfedsam", "local-only")}
    for folder in runs.values():
        path = folder / "sites" / fake.SITES[1] / "scores.json"
        content = json.loads(path.read_text("utf-8"))
        for cases in content["models"].values():
            cases[:] = [case for case in cases if case["patient"] == "patient0"]
        path.write_text(json.dumps(content), "utf-8")
    reason = f"o interval: {fake.SITES[1]} has one test patient."
    html = write_comparison(runs, tmp_path / "c.html").read_text("utf-8")
    assert html.count(reason) == 2  # in the note at the top, and below the differences
    assert re.search(r'Mean over sites</th><td></td><td class="best">0\.\d+</td>', html)
    assert reason in write_page(runs["pfedsam"], baseline=runs["local-only"]).read_text("utf-8")


def test_a_study_of_sites_elsewhere_says_why_it_has_no_intervals(tmp_path, fake):
    write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a", "b")))
    html = write_page(tmp_path).read_text("utf-8")
    assert "There are no intervals: they need the scores of single cases, which stay at the sites." in html
    assert not re.search(r'class="ci">\S+ to ', html)


def test_a_comparison_shows_intervals_and_differences(tmp_path, fake):
    runs = {method: fake.make_run(tmp_path / method, method, fake.SITES[:2]) for method in ("pfedsam", "local-only")}
    html = write_comparison(runs, tmp_path / "c.html").read_text("utf-8")
    assert "Classes: organ, lesion. Tested on 2026-11-28. One seed (1)" in html
    assert "Differences to local-only" in html
    assert "Difference of Dice to local-only by site and run, with intervals" in [
        attributes["alt"] for tag, attributes in tags(html) if tag == "img"
    ]
    assert len(re.findall(r'class="ci">\d\.\d\d to \d\.\d\d<', html)) == 2 * (2 + 1 + 1)
    lowest = html[html.index("Lowest Dice of a site") :]
    assert re.search(rf'<span class="ci">({"|".join(fake.SITES[:2])})</span></td>', lowest)
    assert "Received per site and round" in html
    assert "Worst site" not in html


@pytest.mark.parametrize("page", ["report", "comparison"])
def test_what_is_wider_than_a_phone_says_that_it_scrolls(page, html, tmp_path, fake):
    if page == "comparison":
        write_summary(tmp_path / "summary.json", fake.make_summary(sites=("a",)))
        html = write_comparison({"a": tmp_path}, tmp_path / "c.html").read_text("utf-8")
    assert "Scroll sideways to see all of it" in html[html.index("@media (max-width: 36rem)") :]
    for before in re.findall(r"(.{40})<table", html, re.DOTALL):
        assert '<div class="scroll">' in before


def test_the_summaries_of_the_data_are_named_where_there_are_some(run_folder, tmp_path) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "run")
    assert "summaries/compare.html" not in write_page(folder).read_text("utf-8")
    (folder / "summaries").mkdir()
    (folder / "summaries" / "compare.html").write_text("a page")
    html = write_page(folder).read_text("utf-8")
    assert "summaries/compare.html" in html
    assert_loads_nothing(html)


def test_only_a_page_of_ours_may_be_replaced(tmp_path, html):
    refuse_other_file(tmp_path / "new.html")
    (tmp_path / "page.html").write_text(html)
    refuse_other_file(tmp_path / "page.html")
    (tmp_path / "other.html").write_text("<html></html>")
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link.html").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.html")
    for name in ("other.html", "folder.html", "link.html", "pipe.html"):
        with pytest.raises(OptionError, match="exists already and is no page"):
            refuse_other_file(tmp_path / name)
    with pytest.raises(OptionError, match=r"ends in \.html"):
        refuse_other_file(tmp_path / "study.yaml")
