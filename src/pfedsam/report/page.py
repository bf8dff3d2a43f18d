"""The report of a run, and of several side by side: one HTML file each, which loads nothing and runs nothing.

Everything that a user can name (sites, methods, the configuration) reaches the page through jinja2's escaping, pictures
through data URIs; a content security policy in the page forbids scripts and any load from elsewhere.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from pfedsam.core.atomic import write_text
from pfedsam.report import figures
from pfedsam.report.format import MISSING, format_bytes, format_gain, format_seconds, format_value
from pfedsam.report.overlays import PREDICTION, TRUTH, read_overlays
from pfedsam.report.records import Record, last_validation, read_records
from pfedsam.report.summary_file import SiteEntry, Summary, read_summary, with_local_only
from pfedsam.report.tables import dice_rows, undefined_note

# An absolute path, alone or as a value in YAML: its folders say where a site keeps its data.
_ABSOLUTE_PATH: Final = re.compile(r"(?<![\w./\\~-])(?:~?/|[A-Za-z]:[\\/]|\\\\)[^\s'\",\]}]*")


@dataclass(frozen=True)
class Picture:
    """An overlay as the page shows it."""

    rank: str
    dice: str
    uri: str


@dataclass(frozen=True)
class Absence:
    """A site that did not do its part of a round."""

    round: int
    task: str
    site: str
    reason: str


@dataclass(frozen=True)
class SitePanel:
    """A site's figures; a URI is None where there is nothing to draw."""

    name: str
    entry: SiteEntry
    curve: str | None
    experts: str | None
    overlays: tuple[Picture, ...]


def write_page(run_folder: Path, *, baseline: Path | None = None) -> Path:
    """Writes `report.html` into the folder of a finished run, and says where.

    Args:
        run_folder: Holds `summary.json`; what else of a run is missing there is left out of the page.
        baseline: The folder of a run of local training alone, for the gain over it.

    Raises:
        RunError: the baseline is not of the same federation and split.
        StoreError: the summary, the records or a picture cannot be read, or the page cannot be written.
    """
    summary = read_summary(run_folder / "summary.json")
    if baseline is not None:
        summary = with_local_only(summary, read_summary(baseline / "summary.json"))
    records = read_records(run_folder / "records.jsonl") if (run_folder / "records.jsonl").is_file() else []
    config = run_folder / "config.yaml"
    page = _environment().get_template("page.html.j2")
    html = page.render(
        summary=summary,
        has_gain=any(site.gain is not None for site in summary.sites.values()),
        gains=[site.gain for site in summary.sites.values() if site.gain is not None],
        unit=summary.mean.in_use.unit if summary.mean.in_use else "px",
        class_names=list(summary.mean.in_use.classes) if summary.mean.in_use else [],
        note=undefined_note(summary),
        panels=_panels(summary, records, run_folder),
        losses=_losses(records),
        absences=_absences(records),
        components=_uri(figures.component_bytes(summary.communication.by_component)),
        config=_without_paths(config.read_text("utf-8")) if config.is_file() else None,
    )
    path = run_folder / "report.html"
    write_text(path, html)
    return path


def write_comparison(runs: Mapping[str, Path], out: Path) -> Path:
    """Writes one page about several runs, by label and folder, to the file `out`, and says where.

    Raises:
        StoreError: a summary cannot be read, or the page cannot be written.
    """
    summaries = {label: read_summary(folder / "summary.json") for label, folder in runs.items()}
    html = (
        _environment()
        .get_template("comparison.html.j2")
        .render(
            runs=summaries,
            rows=dice_rows(summaries),
            dots=_uri(figures.comparison_dots(summaries)),
            same_sites=len({frozenset(run.sites) for run in summaries.values()}) == 1,
        )
    )
    write_text(out, html)
    return out


def _environment() -> Environment:
    """The templates beside this module; everything is escaped, and an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("pfedsam.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": format_value, "gain": format_gain, "bytes": format_bytes, "time": format_seconds}
    environment.globals |= {
        "MISSING": MISSING,
        "colors": {
            "personal": figures.PERSONAL,
            "shared": figures.SHARED,
            "faint": figures.FAINT,
            "truth": TRUTH,
            "prediction": PREDICTION,
        },
    }
    return environment


def _panels(summary: Summary, records: Sequence[Record], run_folder: Path) -> list[SitePanel]:
    """A panel for every site, in the summary's order."""
    usage = _last_usage(records)
    highest = max((share for blocks in usage.values() for shares in blocks.values() for share in shares), default=1.0)
    panels = []
    for name, entry in summary.sites.items():
        experts = figures.expert_usage(usage[name], highest=highest) if name in usage else None
        panels.append(
            SitePanel(
                name=name,
                entry=entry,
                curve=_uri(figures.learning_curve(records, name)),
                experts=_uri(experts),
                overlays=_pictures(run_folder, name),
            )
        )
    return panels


def _pictures(run_folder: Path, site: str) -> tuple[Picture, ...]:
    """The overlays of a site; none for a name that would lead out of the folder of sites."""
    if Path(site).name != site:
        return ()
    found = read_overlays(run_folder / "sites" / site / "overlays")
    return tuple(Picture(rank, dice, _data_uri(data, "image/png")) for rank, dice, data in found)


def _last_usage(records: Sequence[Record]) -> dict[str, dict[int, list[float]]]:
    """The shares of the experts by site and block, from the last round that recorded them."""
    usage: dict[str, dict[int, list[float]]] = {}
    for record in records:
        if record["kind"] == "experts":
            usage.setdefault(record["site"], {})[record["block"]] = record["usage"]
    return usage


def _losses(records: Sequence[Record]) -> list[tuple[str, str]]:
    """The phases of the client round that have a loss, in the order in which they ran, with their figures."""
    phases = dict.fromkeys(one["phase"] for one in records if one["kind"] == "round" and "phase" in one)
    drawn = [(phase, _uri(figures.loss_curve(records, phase))) for phase in phases]
    return [(phase, uri) for phase, uri in drawn if uri is not None]


def _absences(records: Sequence[Record]) -> list[Absence]:
    """Every site that was missing or refused, or uses another model than its last personal one, in the order of the rounds."""
    found = []
    last = last_validation(records)
    for row in records:
        if row["kind"] == "absent":
            found += [Absence(row["round"], row["task"], site, reason) for site, reason in row["sites"].items()]
        elif row["kind"] == "kept":
            reason = f"keeps its model of round {row['from_round']}: this one is worse on its validation part"
            found.append(Absence(row["round"], "validate", row["site"], reason))
        elif row["kind"] == "plain" and row["round"] == last:
            reason = "uses the shared model: its personal one does worse on its validation part"
            found.append(Absence(row["round"], "validate", row["site"], reason))
        elif row["kind"] == "aggregate":
            found += [Absence(row["round"], "train", site, reason) for site, reason in row["rejected"].items()]
    return found


def _without_paths(text: str) -> str:
    """The text with absolute paths shortened to their last part: a report may travel, where the data lie may not."""
    return _ABSOLUTE_PATH.sub(lambda match: "…/" + re.split(r"[\\/]", match[0].rstrip("\\/"))[-1], text)


def _uri(svg: bytes | None) -> str | None:
    return None if svg is None else _data_uri(svg, "image/svg+xml")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
