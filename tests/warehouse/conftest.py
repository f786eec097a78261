"""Settings of the warehouse's tests: they touch the disk, whose time hypothesis must not judge."""

from hypothesis import settings

settings.register_profile("disk", deadline=None)
settings.load_profile("disk")
