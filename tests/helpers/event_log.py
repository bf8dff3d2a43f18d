"""Comparing the event logs of two runs."""

from pathlib import Path

from pfedsam.report.records import Record, read_records


def records_without_times(folder: Path) -> list[Record]:
    """The records of a run that depend only on the configuration and the seed: all except the times."""
    return [record for record in read_records(folder / "records.jsonl") if record["kind"] != "timing"]
