"""The update pipeline of a study, from its options."""

from pydantic import Field

from pfedsam.core.options import Options
from pfedsam.core.small_numbers import OFF
from pfedsam.federation.codec import MAX_BLOCK, MIN_BLOCK, Codec, CodecName
from pfedsam.federation.pipeline.base import Pipeline, Step
from pfedsam.federation.pipeline.clip import Clip
from pfedsam.federation.pipeline.error_feedback import ErrorFeedback


class CommunicationOptions(Options):
    """What happens to an update on its way to the server, in the order of the keys but for `block`, and which numbers go with it."""

    clip: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Largest L2 norm of a site's change of the shared parameters in one round; a larger change is scaled down to it. "
        "Empty: no change is scaled.",
    )
    error_feedback: bool = Field(
        default=True,
        description="A site keeps what rounding lost and adds it to its next update; without effect on fp32.",
    )
    codec: CodecName = Field(
        default="int4",
        description="fp32: exact. fp16, int8, int4: the change from the received parameters as half floats or integers.",
    )
    block: int = Field(
        default=64, ge=MIN_BLOCK, le=MAX_BLOCK, description="Values that share one scale with int8 and int4."
    )
    min_cases: int | None = Field(
        default=None,
        ge=1,
        description="Counts and scores that stand for fewer cases than this stay at the site, and a site with fewer training cases "
        "weighs as much as one with so many. Empty: 10 between hospitals; on one machine everything is shown.",
    )
    data_summary: bool = Field(
        default=False,
        description="Whether each site sends a summary of its data once, before its first round: numbers of cases and patients, "
        "histograms of intensities, sizes and spacing, how often each class occurs and how much it fills; nothing of a single case. The "
        "folder of the study or run then holds the files of `pfedsam data summary` and the page of `pfedsam data compare` (summaries/).",
    )

    @property
    def least_cases(self) -> int:
        """The fewest cases that a number which leaves a site may stand for; `OFF` where `min_cases` is empty."""
        return self.min_cases or OFF


def build_pipeline(options: CommunicationOptions) -> Pipeline:
    """The steps that have an effect, in order."""
    codec, steps = Codec(options.codec, options.block), list[Step]()
    if options.clip is not None:
        steps.append(Clip(options.clip))
    if options.error_feedback and not codec.lossless:
        steps.append(ErrorFeedback())
    return Pipeline(tuple(steps), codec)
