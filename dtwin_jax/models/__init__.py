"""Published models of the body, one a file."""

from dtwin_jax.dynamics.model import Model
from dtwin_jax.models.absorption import one_compartment_transit, one_compartment_zero_order
from dtwin_jax.models.adas_cog import adas_cog
from dtwin_jax.models.baroreflex import baroreflex, baroreflex_chain
from dtwin_jax.models.beeler_reuter import beeler_reuter
from dtwin_jax.models.bis import propofol_remifentanil_bis
from dtwin_jax.models.body_weight import body_weight
from dtwin_jax.models.circadian import circadian
from dtwin_jax.models.claret import claret
from dtwin_jax.models.dalla_man import dalla_man_normal, dalla_man_t2d
from dtwin_jax.models.diabetes_and_weight import diabetes_and_weight
from dtwin_jax.models.effect_compartment import effect_compartment
from dtwin_jax.models.egfr import egfr
from dtwin_jax.models.fitzhugh_nagumo import fitzhugh_nagumo
from dtwin_jax.models.four_chambers import four_chambers
from dtwin_jax.models.haemodynamics import haemodynamics
from dtwin_jax.models.hcv import hcv
from dtwin_jax.models.hiv import hiv
from dtwin_jax.models.hovorka import hovorka
from dtwin_jax.models.hpa import hpa
from dtwin_jax.models.indirect_response import (
    indirect_response_1,
    indirect_response_2,
    indirect_response_3,
    indirect_response_4,
    indirect_response_transit,
)
from dtwin_jax.models.influenza import influenza, influenza_eclipse
from dtwin_jax.models.left_heart import left_heart
from dtwin_jax.models.linear_health import linear_health, linear_health_sde
from dtwin_jax.models.luo_rudy import luo_rudy
from dtwin_jax.models.michaelis_menten import parallel_elimination
from dtwin_jax.models.minimal_model import minimal_model
from dtwin_jax.models.myelosuppression import docetaxel_neutrophils, paclitaxel_leukocytes
from dtwin_jax.models.ohara_rudy import ohara_rudy
from dtwin_jax.models.one_compartment import one_compartment
from dtwin_jax.models.oral_minimal_model import oral_minimal_model
from dtwin_jax.models.ovarian_cancer import ovarian_cancer, ovarian_tumour
from dtwin_jax.models.pbpk import pbpk
from dtwin_jax.models.pressure_and_kidney import pressure_and_kidney
from dtwin_jax.models.propofol import propofol_eleveld, propofol_marsh, propofol_schnider
from dtwin_jax.models.raas import raas, raas_full
from dtwin_jax.models.reflex_circulation import reflex_circulation
from dtwin_jax.models.regrowth import lesion_regrowth, regrowth, stein_regrowth
from dtwin_jax.models.remifentanil import remifentanil_eleveld, remifentanil_minto
from dtwin_jax.models.replay_bg import replay_bg
from dtwin_jax.models.sarscov2 import sarscov2
from dtwin_jax.models.seir import seir
from dtwin_jax.models.simeoni import simeoni
from dtwin_jax.models.subcutaneous_insulin import subcutaneous_insulin
from dtwin_jax.models.ten_tusscher import ten_tusscher_endo, ten_tusscher_epi
from dtwin_jax.models.three_compartment import three_compartment
from dtwin_jax.models.time_to_event import drug_hazard
from dtwin_jax.models.tmdd import tmdd, tmdd_qss
from dtwin_jax.models.topp import topp
from dtwin_jax.models.tumour_growth import (
    tumour_bertalanffy,
    tumour_exponential,
    tumour_gompertz,
    tumour_logistic,
)
from dtwin_jax.models.two_compartment import two_compartment
from dtwin_jax.models.uva_padova import uva_padova
from dtwin_jax.models.warfarin import warfarin
from dtwin_jax.models.whig import whig
from dtwin_jax.models.windkessel import (
    windkessel_2,
    windkessel_3,
    windkessel_3_half_sine,
    windkessel_4_parallel,
    windkessel_4_series,
)

SUBJECTS: dict[str, tuple[Model, ...]] = {
    "drug kinetics": (
        one_compartment,
        two_compartment,
        three_compartment,
        one_compartment_zero_order,
        one_compartment_transit,
        parallel_elimination,
        tmdd,
        tmdd_qss,
        pbpk,
    ),
    "drug effects": (
        effect_compartment,
        indirect_response_1,
        indirect_response_2,
        indirect_response_3,
        indirect_response_4,
        indirect_response_transit,
        warfarin,
        docetaxel_neutrophils,
        paclitaxel_leukocytes,
        drug_hazard,
    ),
    "glucose and insulin": (
        minimal_model,
        oral_minimal_model,
        hovorka,
        uva_padova,
        topp,
        dalla_man_normal,
        dalla_man_t2d,
        replay_bg,
        whig,
        subcutaneous_insulin,
    ),
    "chronic disease": (
        linear_health,
        linear_health_sde,
        adas_cog,
        egfr,
    ),
    "circulation": (
        windkessel_2,
        windkessel_3,
        windkessel_4_series,
        windkessel_4_parallel,
        windkessel_3_half_sine,
        left_heart,
        four_chambers,
        baroreflex,
        baroreflex_chain,
        raas,
        raas_full,
    ),
    "tumour": (
        tumour_exponential,
        tumour_logistic,
        tumour_gompertz,
        tumour_bertalanffy,
        claret,
        simeoni,
        regrowth,
        stein_regrowth,
        lesion_regrowth,
        ovarian_tumour,
    ),
    "infection": (
        hiv,
        hcv,
        influenza,
        influenza_eclipse,
        sarscov2,
        seir,
    ),
    "whole body": (
        body_weight,
        hpa,
        circadian,
    ),
    "cells": (
        fitzhugh_nagumo,
        beeler_reuter,
        luo_rudy,
        ten_tusscher_epi,
        ten_tusscher_endo,
        ohara_rudy,
    ),
    "several organs": (
        diabetes_and_weight,
        ovarian_cancer,
        pressure_and_kidney,
        reflex_circulation,
    ),
    "anaesthesia": (
        propofol_schnider,
        propofol_marsh,
        propofol_eleveld,
        remifentanil_minto,
        remifentanil_eleveld,
        propofol_remifentanil_bis,
        haemodynamics,
    ),
}

CATALOGUE: dict[str, Model] = {model.name: model for models in SUBJECTS.values() for model in models}
