"""The rules of a study's rounds at the coordinator."""

from pydantic import Field

from pfedsam.core.options import Options
from pfedsam.federation.bounds import MAX_SHARE, MEDIAN_FACTOR


class RoundPolicy(Options):
    """Quorum, deadlines and bounds of a study at the coordinator."""

    quorum: int = Field(default=2, ge=1, description="Number of accepted updates that a round needs at least.")
    deadline_s: int = Field(
        default=1800,
        ge=1,
        description="Time limit of a client round at the sites, in seconds. The phases after the last aggregation, which can have the "
        "steps of several rounds, get so many times this limit.",
    )
    join_s: int = Field(
        default=300,
        ge=1,
        description="Seconds to wait for all sites of the study to connect and to approve it; then the study starts with those that did, "
        "or stops if they are fewer than the quorum. Once a study has started, no wait for sites to connect is longer than the deadline.",
    )
    score_s: int = Field(default=1800, ge=1, description="Time limit of the test at the end at the sites, in seconds.")

    max_share: float = Field(
        default=MAX_SHARE,
        gt=0,
        le=1,
        description="Largest weight of one site in the average, whatever number of training cases it declares.",
    )
    median_factor: float | None = Field(
        default=MEDIAN_FACTOR,
        ge=1,
        description="An update is scaled down if its norm is above this many times the median norm of the round's accepted updates; empty: "
        "never.",
    )

    @property
    def return_s(self) -> int:
        """Seconds to wait for the sites to load the study, and for the sites of a running study to connect again."""
        return min(self.join_s, self.deadline_s)
