"""What the battery must be told of a model: how long to look, what to give, and what its data reveal.

The defaults suit most models; an entry says only what is different.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """How the battery runs one model.

    Attributes:
        span: length of the record, in the model's unit of time; None takes the usual one of that unit.
        amount: by input that takes doses (amount per time), the size of a dose.
        levels: by other input, the values it takes in turn; by default half, twice and zero its neutral.
        rest: parameter values at which nothing moves while nothing is given; None where the model never
            rests (it grows, beats or decays).
        moved: factor on parameters' defaults, for those whose meaning does not bear 0.85 to 0.95.
        recovered: parameters that the record determines; None is all that have a prior.
        rtol: how closely the solver works where derivatives are compared with finite differences.
        step: relative step of the finite differences.
        slack: how many times further than usual derivatives may be from the finite differences: an
            explicit method steps over kinks of the right-hand side (a valve opens, a beat begins) with an
            error that its control sees in the state, not in the derivative.
        slow: True where derivatives of a solve take minutes to compile: the battery compares them only with
            DTWIN_SLOW set in the environment.
    """

    span: float | None = None
    amount: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rest: Mapping[str, float] | None = field(default_factory=dict)
    moved: Mapping[str, float] = field(default_factory=dict)
    recovered: tuple[str, ...] | None = None
    rtol: float = 1e-10
    step: float = 3e-4
    slack: float = 1.0
    slow: bool = False


CASES: dict[str, Case] = {
    "minimal_model": Case(rest={"G0": 91.34}),
    "oral_minimal_model": Case(
        span=300.0, levels={"insulin": (40.0, 80.0, 20.0), "ra": (0.0, 0.0, 0.0)}, rest={"D": 0.0}
    ),
    # Little is given where glucose would else cross kinks, which cost the solver's derivatives three digits.
    "hovorka": Case(span=480.0, amount={"meal": 1e4, "insulin": 200.0}, levels={"basal": (1.0, 1.1, 0.9)}),
    "uva_padova": Case(
        span=480.0, amount={"meal": 2e4, "insulin": 0.5}, levels={"basal": (1.0, 1.1, 0.9)}, rtol=1e-12
    ),
    "dalla_man_normal": Case(span=420.0, amount={"meal": 5e4}, rtol=1e-12),
    "dalla_man_t2d": Case(span=420.0, amount={"meal": 1e4}, rtol=1e-12, slack=200.0),
    # A sampled signal that is delayed has no exact derivative by its delay, so basal insulin stays at 1.
    "replay_bg": Case(
        span=480.0,
        amount={"meal": 2e4, "insulin": 500.0},
        levels={"basal": (1.0, 1.0, 1.0)},
        rtol=1e-12,
        slack=50.0,
    ),
    # The glucose that the patient starts with is forgotten within a day.
    "topp": Case(span=200.0, levels={"sensitivity": (1.0, 0.6, 0.8)}, recovered=("SI", "B0")),
    "whig": Case(span=400.0, levels={"diet": (0.0, 1.0, 1.0), "placebo": (0.0, 0.5, 1.0)}, rest={"rb": 0.0}),
    "linear_health_sde": Case(rest={"sigma2": 0.0}),
    "tumour_exponential": Case(rest=None),
    "tumour_logistic": Case(rest=None),
    "tumour_gompertz": Case(rest=None),
    "tumour_bertalanffy": Case(rest=None),
    "claret": Case(rest=None),
    "simeoni": Case(span=30.0, amount={"dose": 7.5e5}, rest=None),
    "regrowth": Case(span=400.0, levels={"treatment": (0.0, 1.0, 1.0)}, rest=None),
    "stein_regrowth": Case(span=400.0, levels={"treatment": (0.0, 1.0, 1.0)}, rest=None),
    "lesion_regrowth": Case(span=400.0, levels={"treatment": (0.0, 1.0, 1.0)}, rest=None),
    "hiv": Case(span=7.0, levels={"efficacy": (0.8, 0.95, 0.5)}),
    "hcv": Case(span=60.0, levels={"epsilon": (0.9, 0.6, 0.0), "eta": (0.2, 0.1, 0.0)}),
    "influenza": Case(
        span=6.0,
        levels={"efficacy": (0.0, 0.5, 0.2)},
        rest=None,
        recovered=("R0", "beta"),
        rtol=1e-12,
        step=5e-5,
    ),
    "influenza_eclipse": Case(span=6.0, levels={"efficacy": (0.0, 0.5, 0.2)}, rest=None),
    "sarscov2": Case(span=15.0, levels={"efficacy": (0.0, 0.5, 0.2)}, rest=None),
    "seir": Case(span=90.0, levels={"contact": (1.0, 0.6, 0.8)}, rest={"E0": 0.0, "I0": 0.0}),
    "adas_cog": Case(levels={"symptomatic": (1.0, 0.0, 1.0)}, rest={"slope": 0.0}, recovered=("BL", "slope")),
    "egfr": Case(levels={"acr": (900.0, 300.0, 1500.0)}, rest={"slope": 0.0}),
    "body_weight": Case(
        span=400.0,
        levels={"energy": (-300.0, -600.0, 0.0)},
        amount={"sodium": 500.0},
        recovered=("weight0", "PAL", "adherence"),
    ),
    "hpa": Case(levels={"stress": (1.0, 2.0, 1.5)}, recovered=("gP", "gA"), rtol=1e-9),
    "circadian": Case(span=72.0, levels={"light": (0.0, 500.0, 50.0)}, rest=None),
    "pbpk": Case(recovered=("CLint", "ka")),
    "three_compartment": Case(span=150.0, recovered=("CL", "V1", "Q3", "V3")),
    "parallel_elimination": Case(amount={"oral": 200.0, "iv": 100.0}),
    "tmdd": Case(amount={"sc": 4.0, "iv": 8.0}),
    "tmdd_qss": Case(amount={"sc": 4.0, "iv": 8.0}),
    "effect_compartment": Case(levels={"concentration": (3.0, 12.0, 0.0)}),
    "indirect_response_1": Case(levels={"concentration": (1.0, 6.0, 0.0)}),
    "indirect_response_2": Case(levels={"concentration": (1.0, 6.0, 0.0)}),
    "indirect_response_3": Case(levels={"concentration": (1.0, 6.0, 0.0)}),
    "indirect_response_4": Case(levels={"concentration": (1.0, 6.0, 0.0)}),
    "indirect_response_transit": Case(levels={"concentration": (1.0, 6.0, 0.0)}),
    "warfarin": Case(span=144.0, amount={"oral": 100.0}),
    "docetaxel_neutrophils": Case(span=500.0, amount={"iv": 100.0}),
    "paclitaxel_leukocytes": Case(span=500.0, amount={"iv": 250.0}),
    # Two levels tell the effect or the concentration of half of it.
    "drug_hazard": Case(
        levels={"concentration": (1.0, 8.0, 3.0)}, rest=None, recovered=("h0", "growth", "effect")
    ),
    "fitzhugh_nagumo": Case(
        span=5.0, levels={"stimulus": (-0.4, -0.3, 0.0)}, rest=None, rtol=1e-11, step=1e-4
    ),
    "beeler_reuter": Case(
        span=60.0, levels={"stimulus": (0.1, 0.2, 0.0)}, rest=None, recovered=("g_s", "g_K1")
    ),
    "luo_rudy": Case(
        span=60.0,
        levels={"stimulus": (-2.0, -6.0, 0.0)},
        rest=None,
        recovered=("g_si", "g_K"),
        step=1e-4,
    ),
    "subcutaneous_insulin": Case(span=360.0, amount={"insulin": 1e4}),
    "ovarian_tumour": Case(span=200.0, levels={"concentration": (5.0, 1.0, 0.0)}, rest=None),
    "ovarian_cancer": Case(
        span=200.0,
        # Held rates: a bolus is gone before the next sample.
        levels={"iv": (300.0, 600.0, 100.0), "new_lesion": (0.0, 1.0, 1.0), "followed": (1.0, 1.0, 1.0)},
        rest=None,
        recovered=("tumour.base", "tumour.KG", "tumour.KD"),
    ),
    "diabetes_and_weight": Case(
        span=1.0,
        amount={"insulin": 1e4, "sodium": 500.0},
        levels={"diet": (0.0, -300.0, 200.0)},
        rest=None,
        recovered=("glucose.SI", "glucose.Gb", "insulin.tmaxI"),
    ),
    "pressure_and_kidney": Case(
        levels={"drug": (0.0, 3e-4, 1e-4), "acr": (900.0, 300.0, 1500.0)},
        rest=None,
        recovered=("strain.pressure0", "kidney.egfr0", "hormones.E50"),
        step=1e-3,
    ),
    "windkessel_2": Case(levels={"inflow": (50.0, 300.0, 0.0)}, rest={"P0": 0.0}),
    "windkessel_3": Case(levels={"inflow": (50.0, 300.0, 0.0)}, rest={"P0": 0.0}),
    "windkessel_4_series": Case(levels={"inflow": (50.0, 300.0, 0.0)}, rest={"P0": 0.0}),
    "windkessel_4_parallel": Case(levels={"inflow": (50.0, 300.0, 0.0)}, rest={"P0": 0.0}),
    "windkessel_3_half_sine": Case(rest=None, rtol=1e-12, step=5e-5, slack=50.0),
    "left_heart": Case(span=2.0, rest=None, rtol=1e-12, step=5e-5, slack=50.0),
    # Near a valve that opens derivatives are known to a percent.
    "four_chambers": Case(
        span=1.0,
        amount={"infusion": 20.0},
        rest=None,
        recovered=("C_sat", "Emax_lv"),
        step=5e-5,
        slack=1500.0,
    ),
    "baroreflex": Case(span=60.0, levels={"pressure": (92.0, 105.0, 85.0)}, rtol=1e-12, step=5e-5),
    "baroreflex_chain": Case(span=60.0, levels={"pressure": (92.0, 105.0, 85.0)}, rtol=1e-12, step=5e-5),
    "raas": Case(levels={"drug": (0.0, 4e-4, 1e-4)}),
    "raas_full": Case(levels={"drug": (0.0, 4e-4, 1e-4)}, rtol=1e-8, slack=50.0),
    "haemodynamics": Case(levels={"propofol": (0.5, 3.0, 1.0), "remifentanil": (0.5, 2.0, 1.0)}),
    "ten_tusscher_epi": Case(
        slow=True,
        span=60.0,
        levels={"stimulus": (-0.2, -0.5, 0.0)},
        rest=None,
        recovered=("g_K1", "g_CaL"),
        rtol=1e-8,
        slack=1000.0,
    ),
    "ten_tusscher_endo": Case(
        slow=True,
        span=60.0,
        levels={"stimulus": (-0.2, -0.5, 0.0)},
        rest=None,
        recovered=("g_K1", "g_CaL"),
        rtol=1e-8,
        slack=1000.0,
    ),
    # So little current that the cell does not beat.
    "ohara_rudy": Case(
        slow=True,
        span=20.0,
        levels={"stimulus": (-0.5, -1.0, 0.0), "drug": (0.0, 2.0, 1.0)},
        rest=None,
        recovered=(),
        rtol=1e-8,
    ),
    # As the four chambers; over the stroke volume they are off by 0.35 % of the largest, at any step.
    "reflex_circulation": Case(
        span=1.0,
        levels={"infusion": (0.0, -20.0, 10.0)},
        rest=None,
        recovered=("circulation.C_sat", "reflex.Pn"),
        step=5e-5,
        slack=2500.0,
    ),
    "propofol_remifentanil_bis": Case(recovered=("C50_propofol", "gamma")),
}
