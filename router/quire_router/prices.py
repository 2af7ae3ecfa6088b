"""What tokens cost, in whole billionths of the currency: sums of them are exact. Knows the configuration's prices, and no tenants."""

from decimal import Decimal

import msgspec

from quire_contract.router_config import RouterConfig
from quire_contract.router_tenants import PriceEntry
from quire_router.call import Usage

NANO = 1_000_000_000
_TOKENS_OF_PRICE = 1_000_000


class Price(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Billionths of the currency for a million tokens."""

    input: int
    cached_input: int
    output: int

    def cost(self, usage: Usage) -> int:
        """Billionths of the currency, rounded to the nearest; a half upwards."""
        cached = min(usage.cached, usage.prompt)
        parts = (usage.prompt - cached) * self.input + cached * self.cached_input + usage.output * self.output
        return (parts + _TOKENS_OF_PRICE // 2) // _TOKENS_OF_PRICE


class Prices:
    """Of all models. Follows the live configuration."""

    def __init__(self) -> None:
        self._prices: dict[str, Price] = {}

    def swap(self, config: RouterConfig) -> None:
        """Prices from now on; requests that have begun are settled by these, too."""
        self._prices = {model.name: price_of(model.price) for model in config.models if model.price is not None}

    def of(self, model: str) -> Price | None:
        """The price of a served name; None: it costs nothing."""
        return self._prices.get(model)


def price_of(entry: PriceEntry) -> Price:
    """The entry's decimals as whole numbers: they have nine places at most."""
    cached = entry.input if entry.cached_input is None else entry.cached_input
    return Price(input=nano(entry.input), cached_input=nano(cached), output=nano(entry.output))


def nano(decimal: str) -> int:
    """Billionths."""
    return int(Decimal(decimal) * NANO)


def decimal_of(number: int) -> str:
    """Billionths as a decimal number, without needless zeros."""
    text = f"{Decimal(number).scaleb(-9):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
