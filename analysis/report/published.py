"""The paper's own figures (arXiv 2509.09708), shown only where the study's model is the paper's; section -> figure -> text."""

from collections.abc import Mapping

Figures = Mapping[str, Mapping[str, tuple[str, str]]]
"""section -> key -> (what it is, as published)"""

GEMMA: Figures = {
    "directions": {"layer": ("chosen layer (resid_pre)", "16")},
    "methods": {"asr": ("ASR of Stage 2", "0.33 (was 4 of 861)"), "features": ("unique features", "2,538")},
    "controls": {"random": ("random control, flips of 861", "5"), "baseline": ("best ASR of the k-token baseline", "0.1")},
    "inert": {"inert": ("inert critical features", "1,656"), "active": ("prompts that flip with the active ones only", "103")},
    "fm": {"accuracy": ("test accuracy", "98%")},
    "stage3": {"asr": ("ASR of Stage 3", "0.31"), "features": ("unique features", "3,178")},
    "causal_link": {
        "alone": ("prompts that new features flip alone", "8 (3%)"),
        "off": ("active critical features that switch off", "3%"),
    },
    "redundancy": {"first": ("silent critical features that wake at the first token", "16%")},
    "study": {"score": ("accuracy of annotators", "13.42%")},
}
LLAMA: Figures = {
    "directions": {"layer": ("chosen layer (resid_pre)", "13")},
    "methods": {"asr": ("ASR of Stage 2", "0.70 (was 71 of 861)"), "features": ("unique features", "110")},
    "controls": {"random": ("random control, flips of 861", "0"), "baseline": ("best ASR of the k-token baseline", "0.07")},
    "inert": {"inert": ("inert critical features", "77"), "active": ("prompts that flip with the active ones only", "372")},
    "fm": {"accuracy": ("test accuracy", "98%")},
    "stage3": {
        "asr": ("ASR of Stage 3", "0.61"),
        "features": ("unique features", "1,509"),
        "probe": ("flips by the linear probe's features", "101"),
    },
    "causal_link": {
        "alone": ("prompts that new features flip alone", "330 of 372 (89%)"),
        "off": ("active critical features that switch off", "12% on average, up to 44%"),
        "fall": ("fall of the others", "81%"),
    },
    "redundancy": {
        "system": ("silent critical features that wake at system tokens", "74%"),
        "first_of_system": ("of these at the first token", "97%"),
    },
    "study": {"score": ("accuracy of annotators", "13.42%")},
}
BY_MODEL: Mapping[str, Figures] = {"google/gemma-2-2b-it": GEMMA, "meta-llama/Llama-3.1-8B-Instruct": LLAMA}


def figures(model: str | None, section: str) -> Mapping[str, tuple[str, str]]:
    """What the paper publishes of a section for this model; empty if the study is not the paper's."""
    return BY_MODEL.get(model or "", {}).get(section, {})
