"""What a chip-hour costs, and from it a million tokens; what tokens sell for.

A basis is a way to pay: rent on demand or for three years, or own. Where a quote or an owner's cost is published it is
used; else the owner's cost is derived,

    USD an hour = capital * (annuity(years, cost of capital) + upkeep) / 8766 h
                  + provisioned kW * (facility + electricity),

with capital = card (price, or bill of materials times markup) + its share of server and network. Every part is an
interval; the estimate names the part that drives its spread. ``docs/chips.md`` shows the formula against the six
owner's costs that are published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trivet.chip import estimate
from trivet.chip.estimate import Estimate
from trivet.chip.reading import price_sheet
from trivet.chip.silicon import bill_of_materials
from trivet.chip.spec import Chip
from trivet.cloud.energy import provisioned_facility_w
from trivet.cloud.fabric import Server, server_of
from trivet.errors import TrivetError, UnknownName

BASES = ("tco_hyperscaler", "tco_neocloud", "rent_3_years", "on_demand", "owner")
HOURS_A_YEAR = 8766.0
# Makers whose cloud buys its own chip: design cost and a supplier's margin, no merchant's.
_OWN_CHIP_MAKERS = ("T-Head", "Google", "AWS")
# A published owner's cost is one analyst's model at one date.
_QUOTE_DOUBT = 0.10
# Rent over the hyperscaler's owner's cost, of the chips that have both (H100, H200, B200, GB200, MI300X, MI355X).
_OVER_OWNER = {
    "tco_hyperscaler": (1.0, 0.0),
    "tco_neocloud": (1.25, 0.03),
    "rent_3_years": (1.31, 0.12),
    "on_demand": (5.0, 0.25),
}


@dataclass(frozen=True, slots=True)
class ChipHour:
    """USD of one chip for one hour, its basis, and whether it is a quote or derived."""

    usd: Estimate
    basis: str
    derived: bool
    source: str


def chip_hour(chip: Chip, basis: str = "tco_hyperscaler", where: Server | None = None, site: str = "") -> ChipHour:
    """What one chip costs an hour on ``basis`` (see BASES; ``owner`` always derives).

    Raises:
        TrivetError: an unknown basis.
    """
    if basis not in BASES:
        raise TrivetError(f"{basis!r}", field="basis", allowed=BASES)
    if basis != "owner":
        quote = price_sheet(basis.replace("_", "-")).get(chip.name)
        if quote is not None and quote.value is not None:
            usd = estimate.of(quote, f"{chip.name} {basis}")
            if not usd.spread:
                usd = Estimate(usd.value, {f"{chip.name} {basis}": _QUOTE_DOUBT})
            return ChipHour(usd, basis, False, quote.source)
    own = owner_hour_usd(chip, where, site)
    over, doubt = _OVER_OWNER.get(basis, (1.0, 0.0))
    usd = own * Estimate(over, {f"{basis} over owner's cost": doubt} if doubt else {})
    return ChipHour(usd, basis, True, "derived: capital, facility, power" + ("" if over == 1 else f", times {over:g}"))


def owner_hour_usd(
    chip: Chip, where: Server | None = None, site: str = "", card: Estimate | None = None
) -> Estimate:
    """Derived owner's cost of one chip, USD an hour, whether or not a figure is published; ``card`` overrides its price."""
    sheet = price_sheet("site")
    place = where or server_of(chip)
    years, capital_cost = estimate.of(sheet["years"], "years"), estimate.of(sheet["cost_of_capital"], "cost of capital")
    upkeep = estimate.of(sheet["upkeep_share"], "upkeep")
    yearly = estimate.total((annuity(years, capital_cost), upkeep))
    power_price = estimate.of(sheet["facility_usd_per_kw_hour"], "facility price") + electricity_usd_per_kwh(chip, site)
    kilowatts = provisioned_facility_w(chip, place, site) * 1e-3
    return capital_usd(chip, place, card) * yearly * (1.0 / HOURS_A_YEAR) + kilowatts * power_price


def capital_usd(chip: Chip, where: Server | None = None, card: Estimate | None = None) -> Estimate:
    """One chip with its share of server and network, USD."""
    place = where or server_of(chip)
    network = place.scale_out.facts.get("usd_per_chip")
    share = Estimate(0.0) if network is None else estimate.of(network, f"{place.scale_out.name} usd_per_chip")
    return estimate.total((card or card_usd(chip), server_share_usd(place), share))


def card_usd(chip: Chip) -> Estimate:
    """One card: its street price, else its bill of materials times what its maker adds."""
    sheet = price_sheet("cards")
    quote = sheet.get(chip.name)
    if quote is not None and quote.value is not None:
        return estimate.of(quote, f"{chip.name} price")
    own = chip.maker in _OWN_CHIP_MAKERS
    markup = estimate.of(sheet["own_markup" if own else "merchant_markup"], "markup over bill of materials")
    return bill_of_materials(chip).total * markup


def server_share_usd(where: Server) -> Estimate:
    """A chip's share of the server without its chips: host, memory, board, switches, assembly."""
    drives = (where.get("ssds") or 0.0) * 1000.0
    memory = (where.get("host_memory_bytes") or 0.0) / 2**30 * (price_sheet("silicon")["ddr5_usd_per_gb"].value or 0.0)
    hosts = (where.get("sockets") or 1.0) * 5000.0
    board = where.chips * (2500.0 if where.scale_up.topology in ("switch", "mesh") else 600.0)
    each = (drives + memory + hosts + board + 6000.0) / where.chips
    return Estimate(each, {"server price": 0.3})


def electricity_usd_per_kwh(chip: Chip, site: str = "") -> Estimate:
    """Price of power: China's interval for T-Head's and other Chinese makers' clouds, the US industrial price else."""
    sheet = price_sheet("site")
    chinese = site == "alibaba" or chip.maker in ("T-Head", "Huawei", "Cambricon", "Biren", "Moore Threads", "Baidu")
    if chinese:
        return estimate.of(sheet["electricity_cn"], "electricity price")
    return Estimate(estimate.of(sheet["electricity_us"], "electricity price").value, {"electricity price": 0.15})


def annuity(years: Estimate, rate: Estimate) -> Estimate:
    """Yearly payment that pays back one unit: ``r / (1 - (1 + r)^-n)``."""

    def payment(n: float, r: float) -> float:
        return 1.0 / n if r < 1e-9 else float(r / (1.0 - (1.0 + r) ** -n))

    value = payment(years.value, rate.value)
    spread: dict[str, float] = {}
    for name, sigma in years.spread.items():
        spread[name] = math.log(payment(years.value * math.exp(sigma), rate.value) / value)
    for name, sigma in rate.spread.items():
        spread[name] = math.log(payment(years.value, rate.value * math.exp(sigma)) / value)
    return Estimate(value, spread)


def usd_per_million_tokens(usd_per_chip_hour: Estimate, chips: int, tokens_per_s: float, busy: float = 1.0) -> Estimate:
    """Cost of a million tokens of a deployment of ``chips`` chips; ``busy`` is the share of paid time that serves.

    Raises:
        TrivetError: tokens_per_s or busy not positive.
    """
    if tokens_per_s <= 0 or not 0 < busy <= 1:
        raise TrivetError(f"tokens_per_s {tokens_per_s}, busy {busy}", field="rate", allowed="above 0; busy up to 1")
    return usd_per_chip_hour * (chips / 3600.0 / tokens_per_s / busy * 1e6)


def revenue_usd(model: str, input_tokens: float, output_tokens: float, cached_tokens: float = 0.0) -> float:
    """What the price sheet charges; ``cached_tokens`` of the input were prefix hits (billed at the cached fraction).

    Raises:
        UnknownName: a model that the price sheet (``data/prices/tokens.yaml``) does not list.
    """
    sheet = price_sheet("tokens")
    sold = sorted({key.split("/")[0] for key in sheet if key.endswith("/output")})
    if model not in sold:
        raise UnknownName(f"no token price for {model!r}", field="model", allowed=sold)
    if not 0 <= cached_tokens <= input_tokens:
        raise TrivetError(f"{cached_tokens} of {input_tokens} input tokens", field="cached_tokens")
    fractions = [fact.value for key, fact in sheet.items() if key.endswith("/cached_input") and fact.value is not None]
    cached = sheet[f"{model}/cached_input"].value if f"{model}/cached_input" in sheet else min(fractions, default=1.0)
    price_in, price_out = sheet[f"{model}/input"].value or 0.0, sheet[f"{model}/output"].value or 0.0
    billed = input_tokens - cached_tokens + cached_tokens * (cached or 0.0)
    return (billed * price_in + output_tokens * price_out) / 1e6
