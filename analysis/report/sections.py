"""The sections of the report in their order: the place to add one."""

from saelake.analysis.report import causes, claims, effects, interactions, meaning, provenance, recovery, search, waking
from saelake.analysis.report.blocks import Section

SECTIONS: tuple[Section, ...] = (
    claims.SECTION,
    *search.SECTIONS,
    causes.READOUTS,
    recovery.SECTION,
    *interactions.SECTIONS,
    *waking.SECTIONS,
    *effects.SECTIONS,
    *meaning.SECTIONS,
    *provenance.SECTIONS,
)
