"""The update pipeline of a study, from its options."""

from pydantic import Field

from pfedsam.core.options import Options
from pfedsam.core.small_numbers import OFF
from pfedsam.federation.codec import MAX_BLOCK, MIN_BLOCK, Codec, CodecName
from pfedsam.federation.pipeline.base import Pipeline, Step
from pfedsam.federation.pipeline.clip import Clip
from pfedsam.federation.pipeline.error_feedback import ErrorFeedback


class CommunicationOptions(Options):
    """The steps that an update goes through, in the order of their keys, the size of a block, and which numbers a site may send."""

    clip: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Largest L2 norm of a site's change of the shared parameters in one round; a larger change is scaled down to it, "
        "before error feedback and encoding, which can add about 1 %. Empty: no change is scaled.",
    )
    error_feedback: bool = Field(
        default=True,
        description="Whether a site keeps the rounding error of its update and adds it to the next one; no effect with fp32.",
    )
    codec: CodecName = Field(
        default="int4",
        description="fp32: exact. fp16, int8, int4: the change from the received parameters as half floats or integers.",
    )
    block: int = Field(
        default=64, ge=MIN_BLOCK, le=MAX_BLOCK, description="Number of values with a common scale, for int8 and int4."
    )
    min_cases: int | None = Field(
        default=None,
        ge=1,
        description="Counts and scores that are based on fewer cases than this do not leave the site, and a site with fewer training cases "
        "gets the weight of one with this many. Empty: 10 between hospitals, no limit on one machine.",
    )
    data_summary: bool = Field(
        default=False,
        description="Whether each site sends a summary of its data once, before its first round: numbers of cases and patients, "
        "histograms of intensities, sizes and spacing, how often each class occurs and how much it fills; nothing of a single case. The "
        "folder of the study or run then holds the files of `pfedsam data summary` and the page of `pfedsam data compare` (summaries/).",
    )

    @property
    def least_cases(self) -> int:
        """The smallest number of cases on which a number that leaves a site may be based; `OFF` if `min_cases` is empty."""
        return self.min_cases or OFF


def build_pipeline(options: CommunicationOptions) -> Pipeline:
    """The steps that have an effect, in order."""
    codec, steps = Codec(options.codec, options.block), list[Step]()
    if options.clip is not None:
        steps.append(Clip(options.clip))
    if options.error_feedback and not codec.lossless:
        steps.append(ErrorFeedback())
    return Pipeline(tuple(steps), codec)
