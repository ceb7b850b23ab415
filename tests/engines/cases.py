"""The interventions under test: what the spec says, and what a forward hook would do.

Features are those of tests/data/smollm2-l15, decoder layer 15 of SmolLM2-135M-Instruct. All of them fire on texts.json.
"""

from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SAE = REPOSITORY / "tests/data/smollm2-l15"
LAYER = 15
# Padded carriers serve every token, the first one of norm 25,057 among them; borrowed ones are sized for the others.
NORM = {"padded": 30_000, "borrowed": 250}


@dataclass(frozen=True)
class Term:
    """One [[interventions]] table."""

    feature: int
    action: str
    value: float | None = None
    activation: str | None = None
    gate: int | None = None


@dataclass(frozen=True)
class Site:
    """Terms that read the stream after one decoder layer of the source."""

    layer: int
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Case:
    name: str
    layers: int  # inserted at each site
    sites: tuple[Site, ...]
    # for the specification's [budget] and [domain]
    options: dict = field(default_factory=dict)
    # the sites are steps after one layer: each reads what the one before it has left
    sequence: bool = False

    def spec(self, carriers: str, sae: Path = SAE) -> str:
        """The specification file."""
        lines = [f'sae = "{sae}"', f"layers = {self.layers}"]
        several = len(self.sites) > 1 and not self.sequence
        if not several:
            lines.append(f"layer = {self.sites[0].layer}")
            lines += ["sequence = true"] if self.sequence else []
        else:
            lines.pop(0)
        for site in self.sites:
            if several:
                lines += ["", "[[sites]]", f"layer = {site.layer}", f'sae = "{sae}"']
            for term in site.terms:
                lines += ["", "[[sites.interventions]]" if several else "[[interventions]]"]
                lines += [f"feature = {term.feature}", f'action = "{term.action}"']
                if term.value is not None:
                    lines.append(f"value = {term.value!r}")
                if term.activation is not None:
                    lines.append(f'activation = "{term.activation}"')
                if term.gate is not None:
                    lines.append(f"gate = {term.gate}")
        for table, entries in ({"domain": {"norm": NORM[carriers]}} | self.options).items():
            lines += ["", f"[{table}]"] + [f"{key} = {value}" for key, value in entries.items()]
        return "\n".join(lines) + "\n"


def one_site(name: str, layers: int, *terms: Term) -> Case:
    return Case(name, layers, (Site(LAYER, terms),))


RELU = one_site(
    "ablate (relu)",
    1,
    *(Term(feature, "ablate", activation="relu") for feature in (3, 7, 10, 12, 19, 20)),
)
JUMPRELU = one_site(
    "ablate (jumprelu)",
    2,
    *(Term(feature, "ablate") for feature in (1, 3, 6, 7, 19, 20)),
)
CLAMP = one_site(
    "clamp_when_active",
    2,
    Term(3, "clamp_when_active", 151.0),
    Term(6, "clamp_when_active", 0.5),
    Term(8, "clamp_when_active", 30.0),
    Term(17, "clamp_when_active", -12.5),
    Term(19, "clamp_when_active", 60.0),
    Term(21, "clamp_when_active", 4.0),
)
ADD = one_site(
    "add",
    1,
    Term(4, "add", 40.0),
    Term(20, "add", -12.5),
    Term(10, "add", 0.1),
)
ADD_WHEN_ACTIVE = one_site(
    "add_when_active",
    2,
    *(Term(feature, "add_when_active", value) for feature, value in ((2, 5.5), (3, 40.0), (7, -20.0), (12, 8.0), (19, 0.1), (22, 33.0))),
)
GATE = one_site(
    "gate",
    2,
    Term(19, "ablate", gate=7),
    Term(3, "add", 40.0, gate=12),
    Term(8, "clamp_when_active", 30.0, gate=17),
    Term(5, "ablate", activation="relu", gate=16),
    Term(1, "ablate", gate=21),
    Term(23, "add_when_active", 20.0, gate=18),
)
SITES = Case(
    "two sites",
    1,
    (
        Site(8, tuple(Term(feature, "ablate", activation="relu") for feature in (0, 5, 9))),
        Site(LAYER, tuple(Term(feature, "ablate", activation="relu") for feature in (3, 7, 19))),
    ),
)
STEPS = Case(
    "steps",
    1,
    tuple(Site(LAYER, (Term(feature, "ablate", activation="relu"),)) for feature in (19, 3, 7)),
    sequence=True,
)
# A layer that does all its bookkeeping and never anything else: no activation comes near 10^6.
NO_OP = one_site("no-op", 1, Term(3, "cap", 1e6, activation="relu"))
