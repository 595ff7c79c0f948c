"""What a function needs of a platform, from its settings and its weights. Decides; touches nothing."""

import math
from dataclasses import dataclass

from zerowake.runtime.forms import FormName
from zerowake.runtime.settings import Settings

# Megabytes beside the weights of a gateway with one instance, by form: proportional set sizes after
# the first answer, all-MiniLM-L6-v2 (README, bench/cold_start.py); plain: tests/apps/zoo.py:Add.
OVERHEAD_MB = {
    FormName.PLAIN: 80,
    FormName.TORCH_FREE: 160,
    FormName.COMPILED: 400,
    FormName.EAGER: 400,
}
PROCESS_MB = 40  # of each further process, which holds no model: flask, a client of an API
GPU_OVERHEAD_MB = 3000  # CUDA's libraries and context, and the buffers that weights pass through
HEADROOM = 1.5  # for what calls bring: texts, activations, replies
ANSWER_S = 5  # a platform's timeout is longer than ours by so much, so that callers read our 504


@dataclass(frozen=True, slots=True)
class Needs:
    """A function's needs, whatever the platform.

    name: it is called by this one. snapshot: the snapshot's folder name. form: how it runs there.
    weights_mb, memory_mb: megabytes of 2**20 bytes; memory for all of a container. timeout_s: the
    longest call, as the platform sees it. max_size: the largest batch. concurrency: calls that one
    container should have at a time, twice that: one batch runs, one gathers. instances: fewest and
    most containers. trust: digests whose code may run. gpu: whether it runs on one.
    """

    name: str
    snapshot: str
    form: FormName
    weights_mb: int
    memory_mb: int
    timeout_s: int
    max_size: int
    concurrency: int
    instances: tuple[int, int]
    trust: tuple[str, ...] = ()
    gpu: bool = False

    @property
    def dns_name(self) -> str:
        """The name as a platform takes it: letters, digits and '-'."""
        return self.name.replace("_", "-").strip("-")

    @property
    def disk_mb(self) -> int:
        """Room for the snapshot once fetched."""
        return math.ceil(self.weights_mb * 1.1) + 256


def estimate(
    settings: Settings,
    weights_nbytes: int,
    form: FormName,
    *,
    name: str,
    snapshot: str,
    trust: tuple[str, ...] = (),
    gpu: bool = False,
    memory_mb: int | None = None,
    processes: int = 1,
    torch: bool = False,
) -> Needs:
    """The needs of a function with these settings.

    memory_mb: instead of the estimate. processes: more than one, where a container has several that
    each take one call at a time. torch: whether the author's code imports it, whatever the form.
    """
    weights_mb = math.ceil(weights_nbytes / 2**20)
    overhead_mb = GPU_OVERHEAD_MB if gpu else OVERHEAD_MB[FormName.EAGER if torch else form]
    overhead_mb += (processes - 1) * PROCESS_MB
    max_size = settings.batch.max_size if settings.batch else 1
    return Needs(
        name=name,
        snapshot=snapshot,
        form=FormName.EAGER if gpu else form,
        weights_mb=weights_mb,
        memory_mb=memory_mb or math.ceil((overhead_mb + weights_mb) * HEADROOM),
        timeout_s=math.ceil(settings.timeout_s) + ANSWER_S,
        max_size=max_size,
        concurrency=processes if processes > 1 else 2 * max_size,
        instances=settings.instances,
        trust=trust,
        gpu=gpu,
    )


def step(value: int, by: int, least: int = 0) -> int:
    """``value`` rounded up to a multiple of ``by``, and at least ``least``."""
    return max(least, -(-value // by) * by)
