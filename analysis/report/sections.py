"""The sections of the report in their order: the place to add one."""

from saelake.analysis.report import effects, interactions, meaning, provenance, search
from saelake.analysis.report.blocks import Section

SECTIONS: tuple[Section, ...] = (
    *search.SECTIONS,
    *interactions.SECTIONS,
    *effects.SECTIONS,
    *meaning.SECTIONS,
    *provenance.SECTIONS,
)
