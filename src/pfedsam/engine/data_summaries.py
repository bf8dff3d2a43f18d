"""The summaries of the sites' data in a study's folder: one file for each site, as `pfedsam data summary` writes it, and their page."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pfedsam.core.errors import DataError
from pfedsam.data.site_summary import SiteSummaryFile, read_site_summary, write_site_summary
from pfedsam.report.page import DATA_SUMMARIES
from pfedsam.report.summaries_page import write_summaries_page


class DataSummaries:
    """Which sites are to be asked for a summary of their data, and what they have sent."""

    def __init__(self, study: Path) -> None:
        """Use the folder of summaries in that of a study or a run; it is made with the first summary."""
        self._page = study / DATA_SUMMARIES
        self._checked: set[str] = set()

    def due(self, sites: Iterable[str]) -> list[str]:
        """The sites whose summary is missing or damaged, in the given order; each site is checked once in the life of this object."""
        new = [site for site in sites if site not in self._checked]
        self._checked.update(new)
        return [site for site in new if self._read(site) is None]

    def keep(self, summaries: Mapping[str, SiteSummaryFile]) -> None:
        """Write the summaries by site, and the page of all that are there.

        Raises:
            StoreError: a file could not be written.
        """
        if not summaries:
            return
        self._page.parent.mkdir(exist_ok=True, mode=0o700)
        for site, summary in summaries.items():
            write_site_summary(self._path(site), summary)
        there = [self._read(path.stem) for path in sorted(self._page.parent.glob("*.json"))]
        write_summaries_page([one for one in there if one is not None], self._page)

    def _path(self, site: str) -> Path:
        return self._page.with_name(f"{site}.json")

    def _read(self, site: str) -> SiteSummaryFile | None:
        with suppress(DataError):
            return read_site_summary(self._path(site))
        return None
