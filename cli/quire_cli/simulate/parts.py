"""Workers and router of one fidelity, put together.

`fast` takes runs of steps in closed form, `exact` every step with the real scheduler.
"""

from quire_cli.simulate.costs import StepCost, WorkerShape
from quire_cli.simulate.exact_router import ExactRouter
from quire_cli.simulate.exact_worker import ExactWorker
from quire_cli.simulate.fast_router import FastRouter
from quire_cli.simulate.fast_worker import FastWorker
from quire_cli.simulate.job import Told
from quire_cli.simulate.prefix_cache import PrefixCache
from quire_cli.simulate.request import Request
from quire_contract.router_settings import AdmissionSettings


def _nothing(request: Request, now_s: float) -> None:
    del request, now_s


class FastParts:
    """For days of traffic."""

    def __init__(
        self, shape: WorkerShape, cost: StepCost, rules: AdmissionSettings, seed: int, *, caches: bool = True
    ) -> None:
        """Without `caches`, no prompt is found in a cache: what a load without reuse comes to, sooner."""
        self._shape, self._cost, self._caches = shape, cost, caches
        self.told = Told(first=_nothing, done=_nothing)
        self.router = FastRouter(rules, seed, shape.max_num_seqs, shape.block_size)
        self.now_s = 0.0

    def make(self, number: int) -> FastWorker:
        """A worker."""
        cache = PrefixCache(number, self._shape.block_size, self.router.index) if self._caches else None
        return FastWorker(number, self._shape, self._cost, self.told, cache)


class ExactParts:
    """For minutes of traffic: the engine's and the router's own parts."""

    def __init__(self, shape: WorkerShape, cost: StepCost, rules: AdmissionSettings, seed: int) -> None:
        self._shape, self._cost = shape, cost
        self.router = ExactRouter(rules, seed, shape.block_size)
        self.told = Told(first=_nothing, done=_nothing, listener=self.router)
        self.now_s = 0.0

    def make(self, number: int) -> ExactWorker:
        """A worker."""
        return ExactWorker(number, self._shape, self._cost, self.told, self._clock)

    def _clock(self) -> float:
        return self.now_s
