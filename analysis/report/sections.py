"""The sections of the report in their order: the place to add one."""

from analysis.report import effects, interactions, meaning, provenance, search
from analysis.report.blocks import Section

SECTIONS: tuple[Section, ...] = (
    *search.SECTIONS,
    *interactions.SECTIONS,
    *effects.SECTIONS,
    *meaning.SECTIONS,
    *provenance.SECTIONS,
)
