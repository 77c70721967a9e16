"""Settings of all tests."""

from hypothesis import settings

# A busy machine may take seconds over what takes milliseconds; slowness is tested where it counts.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
